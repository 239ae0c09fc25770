package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Source is where a configuration comes from.
type Source struct {
	// Environ are "NAME=value" strings as os.Environ returns them. An empty value
	// counts as none.
	Environ []string
	// File is the YAML file; empty: none.
	File string
}

// Client is what the command line needs to reach a server. The server doesn't
// read it.
type Client struct {
	// URL is the server's address for stromboli run: http://, https://, or
	// unix:///path/to/socket. Default: the server that runs on the data directory.
	URL string `env:"STROMBOLI_URL"`
	// Token is the API token or JWT for a server with authentication.
	Token Secret `env:"STROMBOLI_TOKEN"`
	// CAFile is a file of certificates (PEM) that a server's certificate may be
	// signed by, beside the system's.
	CAFile string `env:"STROMBOLI_CA_FILE"`
}

// LoadClient reads the client's side of the environment.
func LoadClient(environ []string) (Client, error) {
	var c Client
	err := env.ParseWithOptions(&c, env.Options{Environment: env.ToMap(environ)})
	return c, err
}

// Load reads the configuration from the environment alone; see Read.
func Load(environ []string) (*Config, error) { return Read(Source{Environ: environ}) }

// Read reads the configuration and validates it. The error is all that is wrong,
// each part on a line of its own that begins with where it was set: file, line
// and key, or the variable.
func Read(src Source) (*Config, error) {
	vars := env.ToMap(src.Environ)
	maps.DeleteFunc(vars, func(_, value string) bool { return value == "" })
	c := &Config{home: vars["HOME"], file: src.File, origins: map[string]Origin{}}
	errs := []error{unknown(src.Environ)}
	fromFile, err := readFile(src.File)
	errs = append(errs, err)
	for name, v := range fromFile {
		if vars[name] == "" && v.text != "" {
			vars[name] = v.text
			c.origins[name] = Origin{File: src.File, Line: v.line}
		}
	}
	for _, name := range variables() {
		if _, found := c.origins[name]; !found && vars[name] != "" {
			c.origins[name] = Origin{Variable: name}
		}
	}
	errs = append(errs, parse(c, vars))
	if err := errors.Join(errs...); err != nil { // judging a half-read configuration would find more than there is
		return nil, c.Explain(err)
	}
	if err := errors.Join(c.complete(vars), c.validate()); err != nil {
		return nil, c.Explain(err)
	}
	return c, nil
}

// complete fills in the defaults that depend on something.
func (c *Config) complete(vars map[string]string) (err error) {
	c.expandHome()
	if c.DataDir, err = directory("STROMBOLI_DATA_DIR", c.DataDir, vars["XDG_DATA_HOME"], c.home, ".local/share"); err != nil {
		return err
	}
	if err := c.absolute(); err != nil {
		return err
	}
	if c.CacheDir == "" && (c.DataHostDir != "" || c.Agent.SessionsHostDir != "") {
		// The CLI is mounted from there: the engine must see it.
		c.CacheDir = filepath.Join(c.SharedDir(), "cache")
	}
	if c.CacheDir, err = directory("STROMBOLI_CACHE_DIR", c.CacheDir, vars["XDG_CACHE_HOME"], c.home, ".cache"); err != nil {
		return err
	}
	if c.Agent.CredentialsFile == "" && c.home != "" {
		c.Agent.CredentialsFile = filepath.Join(c.home, ".claude", ".credentials.json")
	}
	if c.Server.Address == "" {
		c.Server.Address = "127.0.0.1:8080"
		if c.Auth.Enabled {
			c.Server.Address = ":8080"
		}
	}
	c.retain()
	return nil
}

func directory(name, set, xdg, home, below string) (string, error) {
	switch {
	case set != "":
		abs, err := filepath.Abs(set)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return abs, nil
	case filepath.IsAbs(xdg):
		return filepath.Join(xdg, "stromboli"), nil
	case home != "":
		return filepath.Join(home, below, "stromboli"), nil
	}
	return "", fmt.Errorf("%s: neither it nor HOME is set", name)
}

// unknown refuses a STROMBOLI_ variable that nothing reads: a misspelt limit
// must not be ignored in silence.
func unknown(environ []string) error {
	// Kubernetes tells every container of a service's address in such, whoever set up the service.
	service := regexp.MustCompile(`^STROMBOLI_(SERVICE_(HOST|PORT)(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?)$`)
	var known []string
	for _, f := range append(schema(), clientFields()...) {
		known = append(known, f.env)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(env.ToMap(environ))) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(known, name) && !strings.HasPrefix(name, "STROMBOLI_TEST_") && !service.MatchString(name) {
			errs = append(errs, fmt.Errorf("%s: no such setting%s; docs/CONFIGURATION.md lists them", name, meant(name, known)))
		}
	}
	return errors.Join(errs...)
}

// Origin is where a value was set. The zero Origin is the default.
type Origin struct {
	Variable string // of the environment
	File     string // or the file
	Line     int    // in it
}

// String is "default", the variable, or file:line.
func (o Origin) String() string {
	if o.File != "" {
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	}
	return cmp.Or(o.Variable, "default")
}

// variable finds the setting that an error is about: it begins with its name.
var variable = regexp.MustCompile(`^(?:configuration: )?([A-Z][A-Z0-9_]+)\b`)

// Explain adds to an error about settings, one per line, where those were set
// that the file sets.
func (c *Config) Explain(err error) error {
	if err == nil {
		return nil
	}
	var out []error
	for _, e := range flat(err) {
		if m := variable.FindStringSubmatch(e.Error()); m != nil {
			if o := c.origins[m[1]]; o.File != "" {
				e = &placed{at: o, key: keyOfVariable(m[1]), err: e}
			}
		}
		out = append(out, e)
	}
	return errors.Join(out...)
}

// placed is an error about what a file sets.
type placed struct {
	at  Origin
	key string
	err error
}

func (p *placed) Error() string { return fmt.Sprintf("%s: %s: %s", p.at, p.key, p.err) }
func (p *placed) Unwrap() error { return p.err }

func keyOfVariable(name string) string {
	for _, f := range schema() {
		if f.env == name {
			return f.key
		}
	}
	return ""
}

// flat takes joined errors apart.
func flat(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flat(e)...)
		}
		return out
	}
	return []error{err}
}
