package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"

	"github.com/tomblancdev/stromboli"
)

// snapshotPages is how many pages are copied between two looks at the context.
const snapshotPages = 2048

// SnapshotInfo tells of a copy.
type SnapshotInfo struct {
	Schema   int64
	Runs     int64
	Sessions int64
}

// Snapshot copies the database at path, which a server may be writing, to a new
// file: what was committed at one moment, durable on return. It calls hold after that moment
// and before the copying, with the keys of the blobs that the copy's rows name; an error
// of it is returned, and no copy is made. Writers aren't kept waiting; the write-ahead log grows
// by what they write meanwhile.
func Snapshot(ctx context.Context, path, dest string, hold func(blobs []string) error) (info SnapshotInfo, err error) {
	conn, done, err := openConn(ctx, path, "rw", "query_only(1)")
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return info, fmt.Errorf("read the database: %w", err)
	}
	defer func() {
		_, end := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		err = errors.Join(err, end)
	}()
	blobs, err := look(ctx, conn, &info) // its first statement fixes the moment
	if err != nil {
		return info, err
	}
	if err := hold(blobs); err != nil {
		return info, err
	}
	if _, err := os.Lstat(dest); err == nil {
		return info, fmt.Errorf("copy the database: %s: %w", dest, os.ErrExist)
	}
	if err := touch(dest); err != nil {
		return info, fmt.Errorf("copy the database: %w", err)
	}
	if err := conn.Raw(func(c any) error { return copyPages(ctx, c, dest) }); err != nil {
		return info, fmt.Errorf("copy the database: %w", err)
	}
	return info, syncFile(dest)
}

// look reads what the copy will hold.
func look(ctx context.Context, conn *sql.Conn, info *SnapshotInfo) ([]string, error) {
	fail := func(err error) ([]string, error) { return nil, fmt.Errorf("read the database: %w", err) }
	if err := conn.QueryRowContext(ctx, "SELECT max(version_id) FROM goose_db_version").Scan(&info.Schema); err != nil {
		return fail(err)
	}
	if newest, err := newestSchema(); err != nil {
		return nil, err
	} else if info.Schema > newest {
		return nil, newer(info.Schema, newest)
	}
	err := conn.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM sessions)").Scan(&info.Runs, &info.Sessions)
	if err != nil {
		return fail(err)
	}
	query := "SELECT transcript_key FROM sessions WHERE transcript_key <> ''"
	if info.Schema >= sessionLists {
		query += " AND deleted_at = 0" // the next server goes on with deleting the others
	}
	if info.Schema >= runArchives { // those in a bucket stay there
		query += ` UNION SELECT a.key FROM run_archives a JOIN runs r ON r.n = a.run LEFT JOIN sessions s ON s.id = r.session_id
			WHERE a.place = '` + localArchive + `' AND r.events_at IN (2, 3) AND coalesce(s.deleted_at, 0) = 0`
	}
	rows, err := conn.QueryContext(ctx, query)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = rows.Close() }()
	var keys []string
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return fail(err)
		}
		keys = append(keys, key)
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return keys, nil
}

// sessionLists is the migration since which sessions are deleted by steps.
const sessionLists = 6

// runArchives is the migration since which events of finished runs may be in
// blobs; localArchive names the place of those that are in this server's.
const (
	runArchives  = 17
	localArchive = "local"
)

func copyPages(ctx context.Context, c any, dest string) error {
	source, ok := c.(interface {
		NewBackup(dstURI string) (*sqlite.Backup, error)
	})
	if !ok {
		return errors.New("the driver can't copy a database")
	}
	b, err := source.NewBackup((&url.URL{Scheme: "file", Path: dest, RawQuery: "mode=rw"}).String())
	if err != nil {
		return err
	}
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, b.Finish())
		}
		if more, err = b.Step(snapshotPages); err != nil {
			return errors.Join(err, b.Finish())
		}
	}
	return b.Finish()
}

// CheckFile reads a whole database file that nobody has open and tells what it
// holds. ErrCorrupt; ErrNewerSchema.
func CheckFile(ctx context.Context, path string) (info SnapshotInfo, err error) {
	if err := verify(ctx, path, true); err != nil {
		return info, err
	}
	conn, done, err := openConn(ctx, path, "ro", "query_only(1)", "immutable")
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, done()) }()
	_, err = look(ctx, conn, &info)
	return info, err
}

// openConn opens a database file by one connection; done closes both.
func openConn(ctx context.Context, path, mode string, pragmas ...string) (conn *sql.Conn, done func() error, err error) {
	db, err := openFile(path, mode, pragmas...)
	if err != nil {
		return nil, nil, err
	}
	if conn, err = db.Conn(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open the database: %w", err), db.Close())
	}
	return conn, func() error { return errors.Join(conn.Close(), db.Close()) }, nil
}

func openFile(path, mode string, pragmas ...string) (*sql.DB, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	q := url.Values{"mode": {mode}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", defaultBusyTimeout.Milliseconds())}}
	for _, p := range pragmas {
		if p == "immutable" {
			q.Set(p, "1")
		} else {
			q["_pragma"] = append(q["_pragma"], p)
		}
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Restored makes a copy of a database another server's: no run of it may be
// started, for it may have been started since the copy was made, and none has a sandbox, for those are the
// first server's. So active runs end as lost at the next start, no session has a kept sandbox, and
// archives in a bucket are read but never deleted: they are the first server's too. Logins are void: they
// may have been revoked since. It may be repeated.
func (s *Store) Restored(ctx context.Context) error {
	_, err := write(ctx, s, "make the database this server's", func(t *tx) (int64, error) {
		if _, err := t.exec(`UPDATE auth_grants SET revoked = 1`); err != nil {
			return 0, err
		}
		if _, err := t.exec(`UPDATE sessions SET sandbox = '', sandbox_since = 0, sandbox_until = 0`); err != nil {
			return 0, err
		}
		if _, err := t.exec(`UPDATE run_archives SET place = ? || place WHERE place <> ? AND substr(place, 1, ?) <> ?`,
			stromboli.SharedArchive, localArchive, len(stromboli.SharedArchive), stromboli.SharedArchive); err != nil {
			return 0, err
		}
		return t.exec(`UPDATE runs SET status = 'running', phase = 'starting', agent_started = 1, sandbox_id = lower(hex(randomblob(8))), owner = '',
			epoch = epoch + 1, started_at = coalesce(started_at, created_at) WHERE status IN ('pending', 'running')`)
	})
	return err
}
