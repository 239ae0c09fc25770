-- +goose Up

-- Where the end of a run that has not ended is to be told.
CREATE TABLE run_webhooks (
    run INTEGER NOT NULL PRIMARY KEY,
    url TEXT    NOT NULL
) STRICT;

-- The outbox: one row per message, written in the transaction that ends the
-- run, which it outlives. attempts counts all, tries those since the last
-- redelivery.
CREATE TABLE webhook_deliveries (
    n           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    tenant      TEXT    NOT NULL,
    run_id      TEXT    NOT NULL,
    session_id  TEXT    NOT NULL DEFAULT '',
    host        TEXT    NOT NULL,
    url         TEXT    NOT NULL,
    status      TEXT    NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    tries       INTEGER NOT NULL DEFAULT 0,
    next_at     INTEGER NOT NULL,
    last_status INTEGER NOT NULL DEFAULT 0,
    last_error  TEXT    NOT NULL DEFAULT '',
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;

CREATE INDEX webhook_deliveries_by_tenant ON webhook_deliveries (tenant, n);
CREATE INDEX webhook_deliveries_by_status ON webhook_deliveries (tenant, status, n);
CREATE INDEX webhook_deliveries_by_run    ON webhook_deliveries (run_id);
CREATE INDEX webhook_deliveries_by_session ON webhook_deliveries (session_id);
CREATE INDEX webhook_deliveries_due       ON webhook_deliveries (host, next_at, n) WHERE status = 'pending';
CREATE INDEX webhook_deliveries_sending   ON webhook_deliveries (host) WHERE status = 'sending';
CREATE INDEX webhook_deliveries_by_finish ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;

-- Apart from the row above, which every attempt rewrites.
CREATE TABLE webhook_bodies (
    delivery INTEGER NOT NULL PRIMARY KEY,
    body     BLOB    NOT NULL
) STRICT;

-- What is owed to each host, derived from the rows above in the same
-- transaction: so that a claim costs the same whatever waits for whom. due_at
-- is NULL where nothing waits.
CREATE TABLE webhook_hosts (
    host    TEXT    NOT NULL PRIMARY KEY,
    due_at  INTEGER,
    sending INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX webhook_hosts_due     ON webhook_hosts (due_at, sending) WHERE due_at IS NOT NULL;
CREATE INDEX webhook_hosts_sending ON webhook_hosts (sending) WHERE sending > 0;
