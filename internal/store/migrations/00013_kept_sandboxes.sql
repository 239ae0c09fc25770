-- +goose Up

-- The sandbox that waits, stopped, for the session's next run, or has that in
-- it; empty: none. The times are in milliseconds.
ALTER TABLE sessions ADD COLUMN sandbox       TEXT    NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN sandbox_since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN sandbox_until INTEGER NOT NULL DEFAULT 0;

CREATE INDEX sessions_with_sandbox ON sessions (sandbox_since) WHERE sandbox <> '';
