-- A row that cannot be published is held: passed over until then, with the reason, and its player's later rows with it.
-- The keys are for the oldest row of each player, and for counting what is held.
ALTER TABLE outbox
    ADD COLUMN held_until DATETIME(6),
    ADD COLUMN held_why TEXT,
    ADD KEY outbox_player (player),
    ADD KEY outbox_held_until (held_until);
