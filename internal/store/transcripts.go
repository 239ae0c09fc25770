package store

import (
	"context"
	"encoding/json"

	"github.com/tomblancdev/stromboli"
)

// TranscriptsInUse tells which of some blobs are a session's newest transcript,
// those that are being deleted included, and which sessions have an active run,
// which may be about to save another, all at one moment.
func (s *Store) TranscriptsInUse(ctx context.Context, keys []string) (stromboli.TranscriptUse, error) {
	use := stromboli.TranscriptUse{Keys: make(map[string]bool), Busy: make(map[string]bool)}
	list, err := json.Marshal(keys)
	if err != nil {
		return use, err
	}
	rows, err := s.readDB.QueryContext(ctx, `SELECT id, transcript_key, active_run <> '' FROM sessions
		WHERE active_run <> '' OR transcript_key IN (SELECT value FROM json_each(?))`, string(list))
	if err != nil {
		return use, s.classify("read transcripts in use", err)
	}
	_, err = collect(rows, func(sc scanner) (struct{}, error) {
		var id, key string
		var busy bool
		if err := sc.Scan(&id, &key, &busy); err != nil {
			return struct{}{}, err
		}
		use.Keys[key] = true
		if busy {
			use.Busy[id] = true
		}
		return struct{}{}, nil
	})
	return use, s.classify("read transcripts in use", err)
}
