-- +goose Up

-- Where a finished run's events are: 0 in the tables, 1 in the tables while an
-- archive may be half made, 2 in an archive, with what is left of the rows, 3 in
-- an archive alone, 4 nowhere any more.
ALTER TABLE runs ADD COLUMN events_at INTEGER NOT NULL DEFAULT 0;

CREATE INDEX runs_to_archive ON runs (finished_at) WHERE finished_at IS NOT NULL AND events_at < 3;
CREATE INDEX runs_archived   ON runs (finished_at) WHERE finished_at IS NOT NULL AND events_at IN (2, 3);

-- The archive of a run's events: the bucket, key and size of the blob, and where in it which events
-- are (frames: the first sequence, offset and length of each part).
CREATE TABLE run_archives (
    run    INTEGER NOT NULL PRIMARY KEY,
    place  TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    bytes  INTEGER NOT NULL DEFAULT 0,
    frames TEXT    NOT NULL DEFAULT '[]'
) STRICT;

CREATE INDEX sessions_by_use ON sessions (updated_at, id);
