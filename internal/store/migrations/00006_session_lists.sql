-- +goose Up

-- What lists of sessions show. deleted_at is set while a session is being
-- deleted: nobody sees it any more, and the next server goes on deleting it.
ALTER TABLE sessions ADD COLUMN title      TEXT    NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN run_count  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cost_usd   REAL    NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN deleted_at INTEGER NOT NULL DEFAULT 0;

CREATE INDEX sessions_by_age  ON sessions (tenant, created_at, id) WHERE ephemeral = 0 AND deleted_at = 0;
CREATE INDEX sessions_active  ON sessions (tenant, created_at, id) WHERE active_run <> '';
CREATE INDEX sessions_deleted ON sessions (deleted_at) WHERE deleted_at > 0;

-- Of the runs that are still there; retention may have taken some.
UPDATE sessions SET
    run_count = (SELECT count(*) FROM runs r WHERE r.session_id = sessions.id),
    cost_usd  = (SELECT coalesce(sum(json_extract(o.outcome, '$.usage.estimated_cost_usd')), 0)
                 FROM runs r JOIN run_outcomes o ON o.run = r.n WHERE r.session_id = sessions.id),
    title     = coalesce((SELECT substr(trim(replace(replace(json_extract(s.spec, '$.prompt'), char(13), ' '), char(10), ' ')), 1, 100)
                 FROM runs r JOIN run_specs s ON s.run = r.n WHERE r.session_id = sessions.id ORDER BY r.n LIMIT 1), '');
