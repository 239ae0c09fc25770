package storetest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func testSecretRows(t *testing.T, f *fixture) {
	ctx := t.Context()
	row := func(tenant, name, key string) stromboli.SealedSecret {
		return stromboli.SealedSecret{
			Secret: stromboli.Secret{ID: tenant + name, Tenant: tenant, Name: name, CreatedBy: "me", CreatedAt: f.clock.Now()}, KeyID: key, Box: []byte(name),
		}
	}
	for _, s := range []stromboli.SealedSecret{row("a", "y", "k1"), row("a", "x", "k1"), row("b", "x", "k2")} {
		if err := f.CreateSecret(ctx, s); err != nil {
			t.Fatal(err)
		}
		got, err := f.GetSecret(ctx, s.Tenant, s.Name)
		if d := cmp.Diff(s, got); err != nil || d != "" {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
	wantErr(t, "a name twice", f.CreateSecret(ctx, row("a", "x", "k3")), stromboli.Conflict)
	list, err := f.ListSecrets(ctx, "a")
	if err != nil || len(list) != 2 || list[0].Name != "x" || list[1].Name != "y" {
		t.Errorf("%+v, %v", list, err)
	}
	others, err := f.OtherlySealed(ctx, "k2", 1)
	if err != nil || len(others) != 1 || others[0].Tenant != "a" || others[0].Name != "x" {
		t.Errorf("%+v, %v", others, err)
	}
	if err := f.ReplaceBox(ctx, row("a", "x", "k9"), "k2", []byte("no")); err != nil { // it is sealed otherwise by now
		t.Error(err)
	}
	if err := f.ReplaceBox(ctx, row("a", "x", "k1"), "k2", []byte("new")); err != nil {
		t.Error(err)
	}
	if s, err := f.GetSecret(ctx, "a", "x"); err != nil || s.KeyID != "k2" || string(s.Box) != "new" {
		t.Errorf("%+v, %v", s, err)
	}
	wantErr(t, "another tenant's", f.DeleteSecret(ctx, "b", "y"), stromboli.NotFound)
	if err := f.DeleteSecret(ctx, "a", "x"); err != nil {
		t.Error(err)
	}
	_, err = f.GetSecret(ctx, "a", "x")
	wantErr(t, "deleted", err, stromboli.NotFound)
}
