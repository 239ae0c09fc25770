-- +goose Up

-- Logins: API tokens exchanged for JWTs. refresh is the id of the one refresh
-- token that may be used next. No token is here, and nothing that is worth one.
-- n counts the logins of one API token. A row with n 0 is a single revoked JWT
-- that another program made.
CREATE TABLE auth_grants (
    id         TEXT    NOT NULL PRIMARY KEY,
    minted_by  TEXT    NOT NULL,
    n          INTEGER NOT NULL,
    refresh    TEXT    NOT NULL,
    revoked    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX auth_grants_by_minter ON auth_grants (minted_by, n);
CREATE INDEX auth_grants_by_expiry ON auth_grants (expires_at);
