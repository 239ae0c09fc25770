package storetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func (f *fixture) grant(t *testing.T, id, mintedBy string) stromboli.Grant {
	t.Helper()
	g := stromboli.Grant{ID: id, MintedBy: mintedBy, Refresh: "r1", Created: f.clock.Now(), Expires: f.clock.Now().Add(time.Hour)}
	if err := f.CreateGrant(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	return g
}

func (f *fixture) wantGrant(t *testing.T, want stromboli.Grant) {
	t.Helper()
	got, err := f.GetGrant(t.Context(), want.ID)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func testGrants(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.GetGrant(ctx, "none")
	wantErr(t, "an unknown grant", err, stromboli.NotFound)
	a, b := f.grant(t, "a", "m"), f.grant(t, "b", "m")
	f.wantGrant(t, a)

	rotate := func(id, from, to string, want bool) {
		t.Helper()
		if ok, err := f.RotateGrant(ctx, id, from, to, f.clock.Now().Add(2*time.Hour)); err != nil || ok != want {
			t.Errorf("%s from %s: %v, %v", id, from, ok, err)
		}
	}
	rotate("a", "r1", "r2", true)
	a.Refresh, a.Expires = "r2", f.clock.Now().Add(2*time.Hour)
	f.wantGrant(t, a)
	f.wantGrant(t, b)
	rotate("a", "r1", "r3", false) // for the second time
	a.Revoked = true
	f.wantGrant(t, a)
	rotate("a", "r2", "r3", false) // nor does the right one work then
	f.wantGrant(t, a)
	rotate("none", "r1", "r2", false)

	for range 2 {
		for _, id := range []string{"b", "another's"} {
			if err := f.RevokeGrant(ctx, id, f.clock.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			}
		}
	}
	b.Revoked = true
	f.wantGrant(t, b)
	f.wantGrant(t, stromboli.Grant{ID: "another's", Revoked: true, Created: f.clock.Now(), Expires: f.clock.Now().Add(time.Minute)})

	for _, c := range []struct {
		later time.Duration
		gone  int
	}{{time.Minute, 0}, {time.Second, 1}, {time.Hour, 1}, {time.Hour, 1}, {time.Hour, 0}} {
		f.clock.add(c.later)
		if n, err := f.DeleteExpiredGrants(ctx); err != nil || n != c.gone {
			t.Errorf("%d grants forgotten, %v; want %d", n, err, c.gone)
		}
	}
}

// Of many that use one refresh token at once one gets the next one, and the
// login is void for all.
func testGrantRace(t *testing.T, f *fixture) {
	f.grant(t, "a", "m")
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			ok, err := f.RotateGrant(t.Context(), "a", "r1", fmt.Sprint("next", i), f.clock.Now())
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	all.Wait()
	g, err := f.GetGrant(t.Context(), "a")
	if won.Load() != 1 || err != nil || !g.Revoked {
		t.Errorf("%d got the next token; revoked: %v, %v", won.Load(), g.Revoked, err)
	}
}
