-- +goose Up

-- The create hooks of a session, as JSON; empty: none.
ALTER TABLE sessions ADD COLUMN create_hooks TEXT NOT NULL DEFAULT '';
