package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/auth"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/webhook"
)

// policies is what a configuration means, read out of it and judged before
// anything is opened. It doesn't change; a reload makes another.
type policies struct {
	image       string // of runs that name none
	limits      policy.Config
	diskLimit   int64
	diskReserve int64
	rate        api.RateLimit
	tokens      []auth.Token
	secret      []byte // signs JWTs
	signing     []webhook.Secret
	zone        string
	zoneData    []byte
}

// newPolicies reads and judges all that a configuration says; own are API tokens
// beside those that it names. The error is all that is wrong with it; what is
// only unwise is logged.
func newPolicies(cfg *config.Config, environ []string, log *slog.Logger, own ...auth.Token) (*policies, error) {
	p := &policies{tokens: own}
	var errs [11]error
	p.image, errs[0] = defaultImage(cfg, environ)
	p.limits, errs[1] = policyConfig(cfg, p.image)
	p.limits.ModelHosts = modelHosts(environ)
	p.diskLimit, p.diskReserve, errs[2] = diskLimits(cfg)
	p.rate, errs[3] = rateLimit(cfg)
	errs[4] = p.readCallers(cfg, log)
	p.signing, errs[5] = signingSecrets(cfg, log)
	p.zone, p.zoneData, errs[6] = timezone(cfg.Agent.Timezone, environ)
	errs[7] = checkModel(cfg, environ)
	if cfg.TLS.Cert != "" {
		_, errs[8] = readPair(cfg.TLS)
	}
	_, errs[9] = traceEndpoint(cfg)
	_, errs[10] = archivePlace(cfg)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, cfg.Explain(err)
	}
	return p, nil
}

// readCallers reads who may call.
func (p *policies) readCallers(cfg *config.Config, log *slog.Logger) error {
	known, err := cfg.LoadAuth()
	if err != nil {
		return err
	}
	for _, t := range known.Tokens {
		p.tokens = append(p.tokens, auth.Token{Name: t.Name, Tenant: t.Tenant, Scopes: t.Scopes, Hash: t.Hash})
		if t.Weak && cfg.Auth.Enabled {
			log.Warn("an API token is short enough to be guessed; make one with `openssl rand -hex 32`", "token", t.Name)
		}
	}
	if !cfg.Auth.Enabled && len(known.Tokens) > 0 {
		log.Warn("API tokens are configured and nobody needs one: authentication is off; set STROMBOLI_AUTH_ENABLED=true")
	}
	p.secret = []byte(known.JWT)
	if err := auth.Check(auth.Config{Enabled: cfg.Auth.Enabled, Tokens: p.tokens, Secret: p.secret}); err != nil {
		return fmt.Errorf("authentication (STROMBOLI_AUTH_ENABLED, STROMBOLI_API_TOKENS, STROMBOLI_API_TOKENS_FILE, STROMBOLI_JWT_SECRET): %w; see docs/AUTHENTICATION.md", err)
	}
	return nil
}

// rateLimit is how much callers may ask.
func rateLimit(cfg *config.Config) (api.RateLimit, error) {
	c := cfg.RateLimit
	proxies, err := c.Proxies()
	if !c.Enabled {
		return api.RateLimit{TrustedProxies: proxies}, err // log and audit log tell of addresses too
	}
	return api.RateLimit{RPS: c.RPS, Burst: c.Burst, TrustedProxies: proxies}, err
}
