package config

import "time"

// Retention is how long each kind of thing is kept. Ages are counted from the end
// of the run, or from the last use. What something needs that is kept still, stays;
// docs/retention.md has the whole table.
type Retention struct {
	// Events is the age, from the run's end on, at which a run's events move from the
	// database into the archive, where they are read as before. 0: they stay in the
	// database.
	Events time.Duration `env:"EVENTS" envDefault:"1h"`
	// Archives is the age, from the run's end on, at which archived events are
	// deleted; the run itself stays. 0: they go with the run.
	Archives time.Duration `env:"ARCHIVES" envDefault:"0s"`
	// Runs is the age at which finished runs are deleted with all that belongs to
	// them; sessions stay. Default: STROMBOLI_JOBS_CLEANUP_TTL.
	Runs time.Duration `env:"RUNS"`
	// Sessions is the age, from its last use on, at which a session is deleted with
	// its transcript, home and workspace, once none of its runs is remembered. 0:
	// sessions stay until they are deleted.
	Sessions time.Duration `env:"SESSIONS" envDefault:"0s"`
	// Deliveries is the age at which webhooks' messages are deleted that arrived or
	// were given up. Default: STROMBOLI_WEBHOOK_CLEANUP_TTL.
	Deliveries time.Duration `env:"DELIVERIES"`
	// IdempotencyKeys is how long an Idempotency-Key stands for the run that it
	// made.
	IdempotencyKeys time.Duration `env:"IDEMPOTENCY_KEYS" envDefault:"24h"`
	// Audit is the age at which full files of the audit log are deleted, all of
	// whose records are older; what is left can still be verified. 0: never.
	Audit time.Duration `env:"AUDIT" envDefault:"0s"`
	// CLIVersions is the age, since a server last used it, at which a version of the
	// agent CLI is deleted from the cache that no container mounts. 0: never.
	CLIVersions time.Duration `env:"CLI_VERSIONS" envDefault:"168h"`
	// Images is the same for agent images that `stromboli setup --image` made, and
	// that no container and no active run uses. 0: never. It is the age since a server
	// last had the image as its default: don't set it where runs name older ones.
	Images time.Duration `env:"IMAGES" envDefault:"0s"`
}

// Archive is where the events of finished runs are kept.
type Archive struct {
	// URL is a bucket of a service that speaks the S3 protocol:
	// s3://BUCKET/PREFIX?region=REGION&endpoint=https://HOST:PORT. Credentials come from
	// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), else from
	// AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials (AWS_PROFILE). Default: the
	// directory blobs in the data directory.
	URL string `env:"URL"`
}

// retain fills in what follows other settings.
func (c *Config) retain() {
	if c.Retention.Runs == 0 {
		c.Retention.Runs = c.Jobs.CleanupTTL
	}
	if c.Retention.Deliveries == 0 {
		c.Retention.Deliveries = c.Webhook.CleanupTTL
	}
}

func (c *Config) checkRetention(p *problems) {
	r := c.Retention
	for _, v := range []struct {
		name string
		age  time.Duration
		zero bool          // is a value of its own
		from time.Duration // the setting that it follows, which is judged by its own name
	}{
		{name: "EVENTS", age: r.Events, zero: true},
		{name: "ARCHIVES", age: r.Archives, zero: true},
		{name: "RUNS", age: r.Runs, from: c.Jobs.CleanupTTL},
		{name: "SESSIONS", age: r.Sessions, zero: true},
		{name: "DELIVERIES", age: r.Deliveries, from: c.Webhook.CleanupTTL},
		{name: "IDEMPOTENCY_KEYS", age: r.IdempotencyKeys},
		{name: "AUDIT", age: r.Audit, zero: true},
		{name: "CLI_VERSIONS", age: r.CLIVersions, zero: true},
		{name: "IMAGES", age: r.Images, zero: true},
	} {
		short := v.age < time.Minute
		p.check(short && v.zero && v.age != 0, "STROMBOLI_RETENTION_"+v.name, "must be 0 or at least 1m")
		p.check(short && !v.zero && (v.from == 0 || v.age != v.from), "STROMBOLI_RETENTION_"+v.name, "must be at least 1m")
	}
}
