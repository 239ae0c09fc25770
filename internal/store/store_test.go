package store_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/store"
	"github.com/tomblancdev/stromboli/internal/store/storetest"
)

func TestMain(m *testing.M) {
	if crashChild() {
		return
	}
	goleak.VerifyTestMain(m)
}

func open(tb testing.TB, cfg store.Config) *store.Store {
	tb.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(tb.TempDir(), "stromboli.db")
	}
	s, err := store.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T, clock *storetest.Clock) storetest.Store {
		t.Helper()
		return open(t, store.Config{Now: clock.Now})
	})
}
