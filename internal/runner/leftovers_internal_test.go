package runner

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/store"
)

// Of blobs in every state that a death, or a run or import at work, may leave them
// in, those go that nobody needs.
func TestRemoveLeftovers(t *testing.T) {
	t.Parallel()
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	blobs, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blobs.Close() }()
	r := New(Config{Store: st, Blobs: blobs, Logger: slog.New(slog.DiscardHandler)})

	session := func(key string) string {
		id := uuid.NewString()
		err := st.CreateSession(t.Context(), stromboli.Session{ID: id, Tenant: "default", CLISessionID: id, TranscriptKey: key})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	imported := session("imports/live.jsonl")
	deleted := session("imports/deleted.jsonl")
	if _, err := st.DeleteSession(t.Context(), "default", deleted); err != nil {
		t.Fatal(err)
	}
	busy := session("imports/busy.jsonl")
	_, _, err = st.CreateRun(t.Context(), stromboli.NewRun{
		Run: stromboli.Run{
			ID: "run-1", Tenant: "default", Kind: stromboli.KindAsync, SessionID: busy, Status: stromboli.Pending, Phase: stromboli.PhaseQueued,
		},
		ResumeSession: busy, MaxQueued: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	saved := session("transcripts/x/2-run.jsonl")
	keep := []string{
		"imports/live.jsonl", "imports/deleted.jsonl", "imports/busy.jsonl", "imports/now.jsonl",
		"transcripts/x/2-run.jsonl", transcriptKey(busy, 2, "run-1"), "other/thing",
	}
	lose := []string{"imports/lost.jsonl", transcriptKey(imported, 1, "run-0"), transcriptKey(saved, 1, "run-0"), transcriptKey(uuid.NewString(), 3, "run-9")}
	for _, key := range slices.Concat(keep, lose) {
		if _, err := blobs.Put(t.Context(), key, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	done := r.importsInto("imports/now.jsonl")
	left := func() (all []string) {
		for _, prefix := range []string{"imports", "transcripts", "other"} {
			if err := blobs.Keys(t.Context(), prefix, func(key string) error { all = append(all, key); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(all)
		return all
	}
	r.removeLeftovers(t.Context())
	slices.Sort(keep)
	if got := left(); !slices.Equal(got, keep) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(keep, "\n"))
	}
	done() // it has failed, and its server has died before it took the blob away
	r.removeLeftovers(t.Context())
	if got := left(); slices.Contains(got, "imports/now.jsonl") || len(got) != len(keep)-1 {
		t.Errorf("left: %q", got)
	}
}
