package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrate brings the schema up to date; a schema from a newer release is
// refused, because this program can't know what its rows mean.
func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithVerbose(false))
	if err != nil {
		return err
	}
	newest, err := newestSchema()
	if err != nil {
		return err
	}
	have, err := provider.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if have > newest {
		return newer(have, newest)
	}
	_, err = provider.Up(ctx)
	return err
}

func newer(have, known int64) error {
	return fmt.Errorf("%w: the database has schema %d and this program knows %d; run the release that wrote it, or a later one", ErrNewerSchema, have, known)
}

// newestSchema is the schema that this program makes.
func newestSchema() (int64, error) {
	entries, err := fs.ReadDir(migrationFiles, "migrations") // sorted by name
	if err != nil {
		return 0, err
	}
	return goose.NumericComponent(entries[len(entries)-1].Name())
}
