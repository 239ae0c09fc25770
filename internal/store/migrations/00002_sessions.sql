-- +goose Up

-- alias is NULL where the session has none: NULLs don't collide. An ephemeral
-- session goes with its run. A fork holds its source until its files are
-- copied (fork_pending); fork_of is the CLI's conversation that the CLI has
-- yet to fork.
ALTER TABLE sessions ADD COLUMN alias        TEXT;
ALTER TABLE sessions ADD COLUMN ephemeral    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN forked_from  TEXT    NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN fork_pending INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN fork_of      TEXT    NOT NULL DEFAULT '';

CREATE UNIQUE INDEX sessions_by_alias    ON sessions (tenant, alias);
CREATE INDEX        sessions_being_forked ON sessions (forked_from) WHERE fork_pending = 1;

ALTER TABLE runs ADD COLUMN session_alias TEXT NOT NULL DEFAULT '';

-- Where sessions have worked, and by which run (its n) the last time there. A
-- run's n orders what clocks may not.
CREATE TABLE session_workspaces (
    tenant    TEXT    NOT NULL,
    workspace TEXT    NOT NULL,
    session   TEXT    NOT NULL,
    run       INTEGER NOT NULL,
    PRIMARY KEY (tenant, workspace, session)
) STRICT, WITHOUT ROWID;

CREATE INDEX session_workspaces_newest     ON session_workspaces (tenant, workspace, run);
CREATE INDEX session_workspaces_by_session ON session_workspaces (session);
