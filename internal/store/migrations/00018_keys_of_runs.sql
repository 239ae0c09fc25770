-- +goose Up

-- A run stays as long as a key stands for it.
CREATE INDEX idempotency_keys_by_run ON idempotency_keys (run_id);
