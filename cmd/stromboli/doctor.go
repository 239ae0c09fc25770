package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/idmap"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
	"github.com/tomblancdev/stromboli/internal/store"
)

// doctorTime bounds the whole examination, the start of an engine's service
// included.
const doctorTime = time.Minute

// databaseTime bounds the reading of the database by the doctor.
const databaseTime = 30 * time.Second

type doctorCommand struct {
	JSON bool `name:"json" help:"Print the findings as JSON."`
	Demo bool `help:"Examine for serve --demo, which needs no credentials."`
}

// Help is shown after the flags.
func (doctorCommand) Help() string {
	return "Looks at this host as serve would use it, says what is wrong and what to do. Exit code 0: nothing failed; 1: something did. " +
		"Where no engine answers, its service is started for the examination and ended again."
}

// Run examines the host.
func (c doctorCommand) Run(ctx context.Context, p process) error {
	cfg, err := p.config()
	if err != nil {
		return c.print(p.stdout, []setup.Finding{{Check: "configuration", Status: setup.Failed, Found: err.Error(), Fix: "see docs/CONFIGURATION.md"}})
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	up, err := checkup(cfg, p.environ, c.Demo)
	if err != nil {
		return err
	}
	up.Database = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, databaseTime)
		defer cancel()
		return store.Verify(ctx, filepath.Join(cfg.DataDir, databaseFile))
	}
	client, err := podman.Open(ctx, podman.OpenConfig{
		Host: cfg.ContainerHost, Dir: filepath.Join(cfg.DataDir, "engine"), AllowOwnService: true,
		Environ: p.environ, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		up.EngineErr = err
		return c.print(p.stdout, setup.Examine(ctx, up))
	}
	up.Engine, up.Socket, up.Outside = client, client.Socket(), outside(cfg, client)
	if info, err := client.Info(ctx); err == nil {
		ids := sandbox.FindUserNS(confinement(cfg, client, info))
		up.UserNS, up.UserNSWhy = ids.Mode, ids.Why
	}
	found := setup.Examine(ctx, up)
	return errors.Join(c.print(p.stdout, found), release(ctx, cfg.DataDir, client))
}

func (c doctorCommand) print(w io.Writer, found []setup.Finding) error {
	healthy := setup.Healthy(found)
	if c.JSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		err := enc.Encode(struct {
			OK       bool            `json:"ok"`
			Version  string          `json:"version"`
			Findings []setup.Finding `json:"findings"`
		}{healthy, version, found})
		if err != nil {
			return err
		}
	} else {
		for _, f := range found {
			_, _ = fmt.Fprintf(w, "%-7s %-16s %s\n", f.Status, f.Check, f.Found)
			if f.Fix != "" && f.Status != setup.OK {
				_, _ = fmt.Fprintf(w, "%24s → %s\n", "", f.Fix)
			}
		}
	}
	if !healthy {
		return exitError(1)
	}
	return nil
}

// checkup is the examination of a host for a server with this configuration,
// but for its engine.
func checkup(cfg *config.Config, environ []string, demo bool) (setup.Checkup, error) {
	image, err := defaultImage(cfg, environ)
	if err != nil {
		return setup.Checkup{}, err
	}
	up := setup.Checkup{
		Root: "/", Host: setup.ReadHost("/", environ), DataDir: cfg.DataDir, SharedDir: cfg.SharedDir(), CacheDir: cfg.CacheDir, Env: environ,
		Address: cfg.ContainerHost, Image: image, AllowUnenforced: cfg.Resources.AllowUnenforced,
		UserNSOff: cfg.Sandbox.UserNS == "none",
	}
	up.Credential, up.Tenants, up.TenantsErr = describeCredentials(cfg, environ, demo)
	if self, err := os.Executable(); err == nil {
		if info, err := os.Stat(self); err == nil {
			up.Built = info.ModTime()
		}
	}
	return up, nil
}

// outside reports whether this process is in a container and the engine is not.
func outside(cfg *config.Config, client *podman.Client) bool {
	return client.Outside() || cfg.DataHostDir != "" || cfg.Agent.SessionsHostDir != ""
}

// confinement is the part of a Manager's configuration that decides which user
// namespaces its sandboxes get.
func confinement(cfg *config.Config, client *podman.Client, info engine.Info) sandbox.Config {
	same, err := idmap.SameMounts(client.PID())
	return sandbox.Config{
		Info: info, Sessions: cfg.SessionsDir(), Container: outside(cfg, client),
		UserNS: cfg.Sandbox.UserNS == "auto", SameMounts: same && err == nil,
	}
}

// reclaim is how a server removes what root hooks of a rootless engine have left;
// nil where it can't.
func reclaim(client *podman.Client, info engine.Info, confined sandbox.Config) func(context.Context, string) error {
	if !info.Rootless || confined.Container {
		return nil
	}
	return client.RemoveTree
}

// defaultImage is the image of runs that name none.
func defaultImage(cfg *config.Config, environ []string) (string, error) {
	if image := cfg.AgentImage(); image != "" {
		return image, nil
	}
	return setup.AgentImageName(setup.ImageConfig{Config: setup.Config{CacheDir: cfg.CacheDir, Env: environ}})
}

// describeCredentials says what is known of the credentials for the model, and
// nothing of what they are.
func describeCredentials(cfg *config.Config, environ []string, demo bool) (common setup.Credential, tenants map[string]setup.Credential, tenantsErr error) {
	if demo {
		return setup.Credential{Demo: true}, nil, nil
	}
	found := readCredentials(cfg, environ, egress.Config{})
	tenants = map[string]setup.Credential{}
	for name, t := range found.tenants {
		tenants[name] = describeCredential(cfg, t)
	}
	return describeCredential(cfg, found.common), tenants, found.tenantsErr
}

func describeCredential(cfg *config.Config, cred config.TenantCredential) setup.Credential {
	if cred.Err != nil {
		return setup.Credential{Err: cred.Err}
	}
	out := setup.Credential{
		Kind: string(cred.Kind), Source: cred.Source, Expires: cred.Expires, Login: cred.Source == cfg.Agent.CredentialsFile,
	}
	if filepath.IsAbs(cred.Source) {
		if info, err := os.Stat(cred.Source); err == nil {
			out.Mode = info.Mode()
		}
	}
	return out
}

// errUnfit tells why a server doesn't start on this host.
func errUnfit(found []setup.Finding) error {
	lines := make([]string, 0, len(found))
	for _, f := range found {
		lines = append(lines, fmt.Sprintf("%s: %s\n  → %s", f.Check, f.Found, f.Fix))
	}
	return errors.New("runs would fail on this host (`stromboli doctor` tells more):\n" + strings.Join(lines, "\n"))
}
