-- +goose Up

-- What was in force for a run's sandbox, as JSON; of its last one.
CREATE TABLE run_attestations (
    run         INTEGER NOT NULL PRIMARY KEY,
    attestation TEXT    NOT NULL
) STRICT;
