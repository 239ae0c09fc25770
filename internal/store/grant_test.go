package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// An API token's logins are bounded: the oldest make way, and no other's.
func TestGrantsAreBounded(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	s.SetMaxGrants(3)
	create := func(id, mintedBy string) {
		t.Helper()
		err := s.CreateGrant(t.Context(), stromboli.Grant{ID: id, MintedBy: mintedBy, Refresh: "r", Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
	}
	there := func() string {
		list := ""
		for _, id := range []string{"other", "0", "1", "2", "3", "4", "5", "revoked"} {
			_, err := s.GetGrant(t.Context(), id)
			if err != nil && !errors.Is(err, stromboli.NotFound) {
				t.Error(err)
			}
			if err == nil {
				list += id + " "
			}
		}
		return list
	}
	create("other", "n")
	if err := s.RevokeGrant(t.Context(), "revoked", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"other 0 revoked ", "other 0 1 revoked ", "other 0 1 2 revoked ", "other 1 2 3 revoked ", "other 2 3 4 revoked ", "other 3 4 5 revoked ",
	} {
		create(fmt.Sprint(i), "m")
		if got := there(); got != want {
			t.Errorf("after %d: %q, want %q", i, got, want)
		}
	}
	for i := range 4 { // those made while authentication was off are one minter's
		create(fmt.Sprint("off", i), "")
	}
	if got, want := there(), "other 3 4 5 revoked "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
