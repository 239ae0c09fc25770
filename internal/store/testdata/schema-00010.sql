-- A row for every table of schema 10, as the release of that schema writes them.
INSERT INTO sessions (id, tenant, created_by, cli_session_id, transcript_version, transcript_key, uid, gid, created_at, updated_at, alias, title, run_count, cost_usd)
VALUES ('s', 'default', 'ci', 's', 1, 'transcripts/s/1-run.jsonl', 1000, 1000, 1767225600000, 1767225601000, 'mine', 'a title', 1, 0.25);
INSERT INTO sessions (id, tenant, created_by, cli_session_id, active_run, created_at, updated_at)
VALUES ('t', 'default', 'ci', 't', 'run-going', 1767225600000, 1767225601000), ('u', 'default', 'ci', 'u', 'run-waiting', 1767225600000, 1767225601000);
-- One that is being deleted: its transcript may be gone.
INSERT INTO sessions (id, tenant, created_by, cli_session_id, transcript_key, created_at, updated_at, deleted_at)
VALUES ('d', 'default', 'ci', 'd', 'transcripts/d/1-run.jsonl', 1767225600000, 1767225601000, 1767225602000);
INSERT INTO runs (n, id, tenant, created_by, kind, session_id, session_alias, status, phase, sandbox_id, agent_started, owner, epoch, created_at, updated_at, started_at, finished_at, last_seq, network, egress_seq, egress_denied)
VALUES (1, 'run-done', 'default', 'ci', 'async', 's', 'mine', 'completed', '', '', 1, 'host/1/a', 1, 1767225600000, 1767225601000, 1767225600500, 1767225601000, 2, '{"mode":"model"}', 1, 2);
INSERT INTO runs (n, id, tenant, created_by, kind, session_id, status, phase, sandbox_id, agent_started, owner, epoch, created_at, updated_at, started_at)
VALUES (2, 'run-going', 'default', 'ci', 'async', 't', 'running', 'generating', '0123456789abcdef', 1, 'host/1/a', 1, 1767225600000, 1767225601000, 1767225600500);
INSERT INTO runs (n, id, tenant, created_by, kind, session_id, status, phase, created_at, updated_at)
VALUES (3, 'run-waiting', 'default', 'ci', 'async', 'u', 'pending', 'queued', 1767225600000, 1767225601000);
INSERT INTO run_specs (run, spec) VALUES (1, '{"prompt":"the question"}'), (2, '{"prompt":"another"}'), (3, '{"prompt":"a third"}');
INSERT INTO run_outcomes (run, outcome) VALUES (1, '{"status":"completed","output":"the answer"}');
INSERT INTO run_metadata (tenant, key, value, created_at, run) VALUES ('default', 'team', 'a', 1767225600000, 1);
INSERT INTO run_attestations (run, attestation) VALUES (1, '{"version":1,"image":"i"}');
INSERT INTO run_webhooks (run, url) VALUES (2, 'https://hooks.example/x');
INSERT INTO events (run, seq, type, at, line, idx, data) VALUES (1, 1, 'run.created', 1767225600000, 0, 0, CAST('{}' AS BLOB)), (1, 2, 'run.finished', 1767225601000, 0, 0, NULL);
INSERT INTO event_payloads (run, seq, data) VALUES (1, 2, CAST('{"large":true}' AS BLOB));
INSERT INTO egress_records (run, seq, record) VALUES (1, 1, '{"seq":1,"run_id":"run-done","kind":"connect","host":"h.example","port":443,"verdict":"denied"}');
INSERT INTO idempotency_keys (tenant, endpoint, key, hash, run_id, created_at) VALUES ('default', 'POST /run', 'k', 'h', 'run-done', 1767225600000);
INSERT INTO session_workspaces (tenant, workspace, session, run) VALUES ('default', '/w', 's', 1);
INSERT INTO secrets (tenant, name, id, created_by, created_at, key_id, box) VALUES ('default', 'token', 'secret-1', 'ci', 1767225600000, '0011223344556677', x'00');
INSERT INTO auth_grants (id, minted_by, n, refresh, revoked, created_at, expires_at) VALUES ('grant-1', 'm', 1, 'r', 0, 1767225600000, 4102444800000);
INSERT INTO webhook_deliveries (n, id, tenant, run_id, session_id, host, url, status, next_at, created_at, updated_at)
VALUES (1, 'msg-1', 'default', 'run-done', 's', 'hooks.example:443', 'https://hooks.example/x', 'pending', 1767225600000, 1767225600000, 1767225600000);
INSERT INTO webhook_bodies (delivery, body) VALUES (1, CAST('{}' AS BLOB));
INSERT INTO webhook_hosts (host, due_at, sending) VALUES ('hooks.example:443', 1767225600000, 0);
