-- Buying, selling and mounting.

-- What the catalogue's file no longer names is retired: it is sold no more, and who owns it keeps it and drives it.
ALTER TABLE slots ADD COLUMN retired BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE cars ADD COLUMN retired BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE items ADD COLUMN retired BOOLEAN NOT NULL DEFAULT FALSE;

-- One row: what the catalogue says besides its cars and items. Who changes the catalogue holds it FOR UPDATE.
CREATE TABLE store (
    id TINYINT UNSIGNED NOT NULL,
    resale_percent TINYINT UNSIGNED NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT store_one_row CHECK (id = 1),
    -- More would let a player make coins by buying and selling.
    CONSTRAINT store_resale_percent CHECK (resale_percent <= 100)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT INTO store (id, resale_percent) VALUES (1, 50);

-- The car, item or session that an entry is about; entries of before this migration do not tell. The names of the new
-- entries are `<reason>:<uuid>`. The key is for reading a player's newest entries.
ALTER TABLE ledger ADD COLUMN about VARCHAR(36), ADD KEY ledger_player_id (player, id);

-- Commands that were carried out, by the key that the client named each by, and what was answered. A row is written in
-- the transaction of what the command changed.
CREATE TABLE idempotency (
    player VARCHAR(128) NOT NULL,
    name VARCHAR(128) NOT NULL,
    command TEXT NOT NULL,
    answer LONGTEXT NOT NULL,
    created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (player, name),
    KEY idempotency_created_at (created_at),
    CONSTRAINT idempotency_player FOREIGN KEY (player) REFERENCES wallets (player)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
