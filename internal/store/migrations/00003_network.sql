-- +goose Up

-- What a run may reach, as JSON; runs of the release before had the open
-- network. egress_seq is the number of the newest record that was stored of the
-- present sandbox.
ALTER TABLE runs ADD COLUMN network       TEXT    NOT NULL DEFAULT '{"mode":"open"}';
ALTER TABLE runs ADD COLUMN egress_seq    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN egress_denied INTEGER NOT NULL DEFAULT 0;

-- One row per connection; seq counts per run, whatever sandboxes it had.
CREATE TABLE egress_records (
    run    INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    record TEXT    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
