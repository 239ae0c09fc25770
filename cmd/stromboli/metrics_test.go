package main

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
)

// Of several tenants' credentials the one counts that ends first.
func TestCredentialExpiry(t *testing.T) {
	t.Parallel()
	at := func(hours int) config.TenantCredential {
		return config.TenantCredential{Credential: config.Credential{Expires: time.Unix(0, 0).Add(time.Duration(hours) * time.Hour)}}
	}
	for _, tt := range []struct {
		c    credentials
		want time.Time
	}{
		{credentials{}, time.Time{}},
		{credentials{common: at(3)}, at(3).Expires},
		{credentials{common: at(3), tenants: map[string]config.TenantCredential{"a": {}, "b": at(2)}}, at(2).Expires},
		{credentials{tenants: map[string]config.TenantCredential{"a": at(5), "b": {}}}, at(5).Expires},
	} {
		if got := tt.c.expiry(); !got.Equal(tt.want) {
			t.Errorf("%v, want %v", got, tt.want)
		}
	}
}
