package setup

import (
	"maps"
	"slices"
	"time"
)

// CheckCredentials judges the common credential for the model and those of
// tenants, one finding each. Where tenants have their own, the common one may
// be missing.
func CheckCredentials(common Credential, tenants map[string]Credential, tenantsErr error, now time.Time) []Finding {
	first := CheckCredential(common, now)
	if common.Err != nil && len(tenants) > 0 {
		first.Status, first.Recovers = Warning, false
		first.Fix = "only tenants that have their own can run; " + first.Fix
	}
	found := []Finding{first}
	if tenantsErr != nil {
		return append(found, passing(failed("tenants' keys", tenantsErr.Error(), "see Tenants in docs/AUTHENTICATION.md")))
	}
	for _, name := range slices.Sorted(maps.Keys(tenants)) {
		f := CheckCredential(tenants[name], now)
		f.Check = "key of " + name
		found = append(found, f)
	}
	return found
}
