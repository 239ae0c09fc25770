-- +goose Up

-- Times are integer milliseconds since 1970, UTC. Runs have an integer key of
-- their own (n, in order of submission) because every event carries it.

CREATE TABLE sessions (
    id                 TEXT    NOT NULL PRIMARY KEY,
    tenant             TEXT    NOT NULL,
    created_by         TEXT    NOT NULL,
    cli_session_id     TEXT    NOT NULL,
    active_run         TEXT    NOT NULL DEFAULT '',
    transcript_version INTEGER NOT NULL DEFAULT 0,
    transcript_key     TEXT    NOT NULL DEFAULT '',
    uid                INTEGER NOT NULL DEFAULT 0,
    gid                INTEGER NOT NULL DEFAULT 0,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    n             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id            TEXT    NOT NULL UNIQUE,
    tenant        TEXT    NOT NULL,
    created_by    TEXT    NOT NULL,
    kind          TEXT    NOT NULL,
    session_id    TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    phase         TEXT    NOT NULL,
    sandbox_id    TEXT    NOT NULL DEFAULT '',
    agent_started INTEGER NOT NULL DEFAULT 0,
    cancel_reason TEXT    NOT NULL DEFAULT '',
    owner         TEXT    NOT NULL DEFAULT '',
    epoch         INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER,
    image_digest  TEXT    NOT NULL DEFAULT '',
    warnings      TEXT    NOT NULL DEFAULT '[]',
    last_seq      INTEGER NOT NULL DEFAULT 0,
    last_line     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The two indexes that lists are made of: one ordered range per status, or per
-- kind and status.
CREATE INDEX runs_by_status      ON runs (tenant, status, created_at);
CREATE INDEX runs_by_kind_status ON runs (tenant, kind, status, created_at);
CREATE INDEX runs_by_session     ON runs (session_id, created_at);
CREATE INDEX runs_by_finish      ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_active         ON runs (status) WHERE status IN ('pending', 'running');
CREATE UNIQUE INDEX runs_one_per_session ON runs (session_id) WHERE status IN ('pending', 'running');

-- Large and never changed; apart from the row above, which every batch of
-- events rewrites.
CREATE TABLE run_specs (
    run  INTEGER NOT NULL PRIMARY KEY,
    spec TEXT    NOT NULL
) STRICT;

CREATE TABLE run_outcomes (
    run     INTEGER NOT NULL PRIMARY KEY,
    outcome TEXT    NOT NULL
) STRICT;

CREATE TABLE run_metadata (
    tenant     TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    run        INTEGER NOT NULL,
    PRIMARY KEY (tenant, key, value, created_at, run)
) STRICT, WITHOUT ROWID;

CREATE INDEX run_metadata_by_run ON run_metadata (run);

-- data is NULL where the payload is in event_payloads.
CREATE TABLE events (
    run  INTEGER NOT NULL,
    seq  INTEGER NOT NULL,
    type TEXT    NOT NULL,
    at   INTEGER NOT NULL,
    line INTEGER NOT NULL DEFAULT 0,
    idx  INTEGER NOT NULL DEFAULT 0,
    data BLOB
) STRICT;

CREATE UNIQUE INDEX events_by_seq  ON events (run, seq);
CREATE UNIQUE INDEX events_by_line ON events (run, line, idx) WHERE line > 0;

CREATE TABLE event_payloads (
    run  INTEGER NOT NULL,
    seq  INTEGER NOT NULL,
    data BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX event_payloads_by_seq ON event_payloads (run, seq);

CREATE TABLE idempotency_keys (
    tenant     TEXT    NOT NULL,
    endpoint   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    hash       TEXT    NOT NULL,
    run_id     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, endpoint, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
