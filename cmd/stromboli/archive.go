package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/store"
)

// openArchive makes the archive in the configured place. What an earlier server
// archived in its own directory is read from there all the same.
func openArchive(cfg *config.Config, environ []string, st *store.Store, blobs *blob.Dir, log *slog.Logger) (a *archive.Archive, closeIt func() error, err error) {
	c := archive.Config{Store: st, Buckets: map[string]archive.Bucket{archive.Local: blobs}, Place: archive.Local, Log: log}
	closeIt = func() error { return nil }
	if cfg.Archive.URL != "" {
		place, err := archivePlace(cfg)
		if err != nil {
			return nil, nil, err
		}
		bucket, err := blob.OpenBucket(place, func(name string) string { return getenv(environ, name) }, getenv(environ, "HOME"))
		if err != nil {
			return nil, nil, fmt.Errorf("STROMBOLI_ARCHIVE_URL: %w", err)
		}
		c.Place, closeIt = place.String(), bucket.Close
		c.Buckets[c.Place] = bucket
	}
	return archive.New(c), closeIt, nil
}

// archivePlace is the bucket, where one is configured.
func archivePlace(cfg *config.Config) (blob.Place, error) {
	if cfg.Archive.URL == "" {
		return blob.Place{}, nil
	}
	place, err := blob.ParsePlace(cfg.Archive.URL)
	if err != nil {
		return place, fmt.Errorf("STROMBOLI_ARCHIVE_URL: %w", err)
	}
	return place, nil
}

// archived is the store that followers read, with what is in the archive.
type archived struct {
	watched
	archive *archive.Archive
}

// Events implements eventlog.Store.
func (a archived) Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error) {
	return a.archive.Events(ctx, runID, after, limit)
}

// EventData implements eventlog.Store.
func (a archived) EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error) {
	return a.archive.EventData(ctx, runID, seq)
}

// archiveComponent is the archive's name in GET /health. While it doesn't answer,
// runs go on and their events stay in the database.
const archiveComponent = "archive"

func (s *server) archiveFault() string {
	fault := s.archive.Fault()
	if fault != "" {
		fault += " (events stay in the database until it works again)"
	}
	return fault
}
