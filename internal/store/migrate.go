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
	sources := provider.ListSources()
	newest := sources[len(sources)-1].Version
	have, err := provider.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if have > newest {
		return fmt.Errorf("%w: the database has schema %d and this program knows %d; run the release that wrote it, or a later one",
			ErrNewerSchema, have, newest)
	}
	_, err = provider.Up(ctx)
	return err
}
