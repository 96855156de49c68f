-- The schema of inventory, in the SQL that MySQL 8 and MariaDB 10.11 share.
--
-- Every table is utf8mb4_bin: a player's id is case-sensitive, and so must be its keys. Names of constraints carry the
-- table's name, as MySQL wants those of checks and foreign keys unique in a database.

-- The catalogue.

CREATE TABLE slots (
    id VARCHAR(32) NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE cars (
    id VARCHAR(32) NOT NULL,
    name VARCHAR(64) NOT NULL,
    model VARCHAR(255) NOT NULL,
    texture VARCHAR(255) NOT NULL,
    price BIGINT NOT NULL,
    power_kw DOUBLE NOT NULL,
    mass_kg DOUBLE NOT NULL,
    grip DOUBLE NOT NULL,
    drag_m2 DOUBLE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT cars_price_not_negative CHECK (price >= 0),
    CONSTRAINT cars_stats_positive CHECK (power_kw > 0 AND mass_kg > 0 AND grip > 0 AND drag_m2 > 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE car_slots (
    car VARCHAR(32) NOT NULL,
    slot VARCHAR(32) NOT NULL,
    PRIMARY KEY (car, slot),
    CONSTRAINT car_slots_car FOREIGN KEY (car) REFERENCES cars (id),
    CONSTRAINT car_slots_slot FOREIGN KEY (slot) REFERENCES slots (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What an item adds to a car's stats may be negative: a light bonnet takes mass away.
CREATE TABLE items (
    id VARCHAR(32) NOT NULL,
    name VARCHAR(64) NOT NULL,
    slot VARCHAR(32) NOT NULL,
    model VARCHAR(255) NOT NULL,
    texture VARCHAR(255) NOT NULL,
    price BIGINT NOT NULL,
    add_power_kw DOUBLE NOT NULL,
    add_mass_kg DOUBLE NOT NULL,
    add_grip DOUBLE NOT NULL,
    add_drag_m2 DOUBLE NOT NULL,
    PRIMARY KEY (id),
    -- Seen by mounted_items, so that an item goes only where it fits.
    UNIQUE KEY items_id_slot (id, slot),
    CONSTRAINT items_slot FOREIGN KEY (slot) REFERENCES slots (id),
    CONSTRAINT items_price_not_negative CHECK (price >= 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What players own.

CREATE TABLE players (
    id VARCHAR(128) NOT NULL,
    created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE owned_cars (
    player VARCHAR(128) NOT NULL,
    car VARCHAR(32) NOT NULL,
    acquired_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (player, car),
    CONSTRAINT owned_cars_player FOREIGN KEY (player) REFERENCES players (id),
    CONSTRAINT owned_cars_car FOREIGN KEY (car) REFERENCES cars (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE active_cars (
    player VARCHAR(128) NOT NULL,
    car VARCHAR(32) NOT NULL,
    PRIMARY KEY (player),
    CONSTRAINT active_cars_owned FOREIGN KEY (player, car) REFERENCES owned_cars (player, car)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE owned_items (
    player VARCHAR(128) NOT NULL,
    item VARCHAR(32) NOT NULL,
    quantity INT UNSIGNED NOT NULL,
    PRIMARY KEY (player, item),
    CONSTRAINT owned_items_player FOREIGN KEY (player) REFERENCES players (id),
    CONSTRAINT owned_items_item FOREIGN KEY (item) REFERENCES items (id),
    CONSTRAINT owned_items_quantity_positive CHECK (quantity > 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE mounted_items (
    player VARCHAR(128) NOT NULL,
    car VARCHAR(32) NOT NULL,
    slot VARCHAR(32) NOT NULL,
    item VARCHAR(32) NOT NULL,
    PRIMARY KEY (player, car, slot),
    CONSTRAINT mounted_items_car_owned FOREIGN KEY (player, car) REFERENCES owned_cars (player, car),
    CONSTRAINT mounted_items_item_owned FOREIGN KEY (player, item) REFERENCES owned_items (player, item),
    CONSTRAINT mounted_items_car_has_slot FOREIGN KEY (car, slot) REFERENCES car_slots (car, slot),
    CONSTRAINT mounted_items_item_fits FOREIGN KEY (item, slot) REFERENCES items (id, slot)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- A player's row here is also his lock: whoever changes what he owns holds it FOR UPDATE.
CREATE TABLE wallets (
    player VARCHAR(128) NOT NULL,
    balance BIGINT NOT NULL,
    PRIMARY KEY (player),
    CONSTRAINT wallets_player FOREIGN KEY (player) REFERENCES players (id),
    CONSTRAINT wallets_balance_not_negative CHECK (balance >= 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Append-only. `name` makes an entry happen once: `starter`, `reward:<session>`. `balance` is the wallet's after it.
CREATE TABLE ledger (
    id BIGINT NOT NULL AUTO_INCREMENT,
    player VARCHAR(128) NOT NULL,
    name VARCHAR(64) NOT NULL,
    reason VARCHAR(32) NOT NULL,
    amount BIGINT NOT NULL,
    balance BIGINT NOT NULL,
    created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id),
    UNIQUE KEY ledger_player_name (player, name),
    CONSTRAINT ledger_player FOREIGN KEY (player) REFERENCES wallets (player),
    CONSTRAINT ledger_balance_not_negative CHECK (balance >= 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Events on their way to the log. Ids of one player ascend in the order of his commits, as his lock is held.
CREATE TABLE outbox (
    id BIGINT NOT NULL AUTO_INCREMENT,
    player VARCHAR(128) NOT NULL,
    event_type VARCHAR(64) NOT NULL,
    version INT UNSIGNED NOT NULL,
    data LONGTEXT NOT NULL,
    event BINARY(16) NOT NULL,
    correlation BINARY(16) NOT NULL,
    decided_ms BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY outbox_event (event),
    CONSTRAINT outbox_data_is_json CHECK (JSON_VALID(data))
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One row: who holds it FOR UPDATE publishes the outbox.
CREATE TABLE outbox_lease (
    id TINYINT UNSIGNED NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT outbox_lease_one_row CHECK (id = 1)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT INTO outbox_lease (id) VALUES (1);
