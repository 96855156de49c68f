-- How good each player is: Glicko-2, see domain/rating.rs. In the row that first sight makes, with the rating of who
-- begins as default, so that players of before this migration, and those whom an instance of before it introduces,
-- have theirs too. Who changes it holds the player's row of wallets, as for all that he owns.
ALTER TABLE players
    ADD COLUMN rating DOUBLE NOT NULL DEFAULT 1500,
    ADD COLUMN deviation DOUBLE NOT NULL DEFAULT 350,
    ADD COLUMN volatility DOUBLE NOT NULL DEFAULT 0.06,
    ADD COLUMN matches INT UNSIGNED NOT NULL DEFAULT 0,
    ADD CONSTRAINT players_rating_uncertain CHECK (deviation > 0 AND volatility > 0);
