-- +goose Up

-- box is nonce and ciphertext; without the key file it tells a value's length
-- and no more.
CREATE TABLE secrets (
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    created_by TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    key_id     TEXT    NOT NULL,
    box        BLOB    NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT;

CREATE INDEX secrets_by_key ON secrets (key_id);
