package setup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Status is what a check came to.
type Status string

// The outcomes of a check.
const (
	OK      Status = "ok"
	Warning Status = "warning" // works, but not as well as it could
	Failed  Status = "failed"  // runs would fail
	Skipped Status = "skipped" // something that it needs failed before
)

// Finding is what one check found on this host. It never holds a secret.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	// Fix says what to do; empty where nothing need be done.
	Fix string `json:"fix,omitempty"`
	// Recovers tells of a failure that can pass while a server runs, so that
	// one starts all the same and says what it lacks.
	Recovers bool `json:"recovers,omitempty"`
}

// Checkup is a host as a server would use it.
type Checkup struct {
	// Root is the root of the host's files, "/" unless a test has its own.
	Root string
	// Host is what ReadHost found there.
	Host Host
	// DataDir and CacheDir are the server's, SharedDir what sandboxes mount of
	// it (default: DataDir).
	DataDir, CacheDir, SharedDir string
	Env                          []string
	// Address is the engine's address where configuration names it, Socket the
	// one in use.
	Address, Socket string
	// Engine answers, or EngineErr says why none does.
	Engine    Engine
	EngineErr error
	// Outside: this process is in a container, and the engine is not.
	Outside bool
	// UserNS says what user namespaces sandboxes get ("auto", "keep-id" or
	// "none"), UserNSWhy why not "auto", and UserNSOff that none are wanted.
	UserNS, UserNSWhy string
	UserNSOff         bool
	// Image is the image of runs that name none.
	Image string
	// AllowUnenforced permits limits without effect.
	AllowUnenforced bool
	Credential      Credential
	// Tenants are the credentials of tenants that have their own, by name, and
	// TenantsErr is why they can't be read.
	Tenants    map[string]Credential
	TenantsErr error
	// Built is when this program was made: no clock should be before it.
	Built time.Time
	Space func(path string) (Space, error) // default SpaceAt
	// Database reads the whole database and says whether it is damaged; nil: it
	// isn't looked at. It changes nothing.
	Database func(ctx context.Context) error
}

// Engine is what a checkup asks of an engine.
type Engine interface {
	Info(ctx context.Context) (engine.Info, error)
	ImageExists(ctx context.Context, ref string) (bool, error)
}

// Credential describes the model's credential without holding it.
type Credential struct {
	Kind, Source string
	Expires      time.Time // zero: not known
	// Login: it is the Claude CLI's own login, which the CLI renews.
	Login bool
	// Demo: none is needed.
	Demo bool
	// Mode is that of the file it came from; 0 for the environment.
	Mode fs.FileMode
	// Err says why there is none.
	Err error
}

// Examine runs all checks, in the order in which they build on each other. It
// changes nothing and takes about as long as the engine's answer.
func Examine(ctx context.Context, c Checkup) []Finding {
	if c.Space == nil {
		c.Space = SpaceAt
	}
	if c.Root == "" {
		c.Root = "/"
	}
	if c.SharedDir == "" {
		c.SharedDir = c.DataDir
	}
	var info engine.Info
	err := c.EngineErr
	if err == nil {
		info, err = c.Engine.Info(ctx)
	}
	found := []Finding{c.checkSocket(err), checkKernel(c.Host)}
	if err == nil {
		found = append(found,
			checkVersion(info), checkSameKernel(info, c.Host), checkCgroups(info, c.Host, c.AllowUnenforced),
			checkRuntime(info, c.Host), checkStorage(info), checkSELinux(info, c.Host), c.checkUserNS())
	} else {
		for _, name := range []string{"engine version", "engine's kernel", "cgroups", "runtime", "storage", "selinux", "user namespaces"} {
			found = append(found, skipped(name))
		}
	}
	found = append(found, c.checkSubIDs(err == nil && !info.Rootless), c.checkDataDir(), c.checkShared(), c.checkPlaces())
	if c.Database != nil {
		found = append(found, c.checkDatabase(ctx))
	}
	found = append(found, c.checkDisk(info.GraphRoot))
	if err == nil {
		found = append(found, c.checkImage(ctx))
	} else {
		found = append(found, skipped("image"))
	}
	found = append(found, CheckCLI(c.CacheDir, c.Env))
	found = append(found, CheckCredentials(c.Credential, c.Tenants, c.TenantsErr, c.Host.Now)...)
	return append(found, checkClock(c.Host, c.Built), checkFiles(c.Host))
}

// Refusals are the failures that would not pass by themselves: a server must
// not start on them.
func Refusals(found []Finding) []Finding {
	var out []Finding
	for _, f := range found {
		if f.Status == Failed && !f.Recovers {
			out = append(out, f)
		}
	}
	return out
}

// Healthy reports whether no check failed.
func Healthy(found []Finding) bool {
	for _, f := range found {
		if f.Status == Failed {
			return false
		}
	}
	return true
}

func skipped(name string) Finding {
	return Finding{Check: name, Status: Skipped, Found: "the engine doesn't answer"}
}

func ok(check, found string) Finding { return Finding{Check: check, Status: OK, Found: found} }

func warning(check, found, fix string) Finding {
	return Finding{Check: check, Status: Warning, Found: found, Fix: fix}
}

func failed(check, found, fix string) Finding {
	return Finding{Check: check, Status: Failed, Found: found, Fix: fix}
}

// passing marks a failure that can pass while a server runs.
func passing(f Finding) Finding {
	f.Recovers = f.Status == Failed
	return f
}

// checkImage looks for the image of runs that name none.
func (c Checkup) checkImage(ctx context.Context) Finding {
	const name = "image"
	if c.Image == "" {
		return failed(name, "no agent image is configured", "set STROMBOLI_AGENT_IMAGE, or run `stromboli setup --image`")
	}
	there, err := c.Engine.ImageExists(ctx, c.Image)
	switch {
	case err != nil:
		return passing(failed(name, "the engine can't say whether "+c.Image+" is there: "+err.Error(), "see the engine's log"))
	case !there && isAgentImage(c.Image):
		return passing(failed(name, c.Image+" is not in the engine's store", "run `stromboli setup --image`"))
	case !there:
		return passing(failed(name, c.Image+" is not in the engine's store", "pull it (`podman pull "+c.Image+"`), or set STROMBOLI_AGENT_IMAGE to another"))
	}
	return ok(name, c.Image)
}

// CheckCLI looks for the agent CLI's build for most images; it fetches nothing.
func CheckCLI(cacheDir string, env []string) Finding {
	const name = "agent cli"
	const fix = "run `stromboli setup`"
	cfg, err := Config{CacheDir: cacheDir, Env: env}.withDefaults()
	if err != nil {
		return failed(name, err.Error(), fix)
	}
	dir := cfg.cliDir()
	if !cfg.cliWhole(dir, marker{Package: cfg.cliPackage(), Version: cfg.Version}) {
		// A server fetches it at its start, and refuses to start where that fails.
		return passing(failed(name, "agent CLI "+cfg.Version+" is not in "+cacheDir+", or not whole", fix))
	}
	return ok(name, cfg.Version+" in "+dir.Path)
}

// checkDataDir makes sure that the server can keep its state.
func (c Checkup) checkDataDir() Finding {
	const name = "data directory"
	st, err := os.Stat(c.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ok(name, c.DataDir+" (will be made)")
	case err != nil:
		return failed(name, err.Error(), "set STROMBOLI_DATA_DIR to a directory of the user who runs the server")
	case !st.IsDir():
		return failed(name, c.DataDir+" is not a directory", "set STROMBOLI_DATA_DIR to a directory")
	}
	if uid := ownerOf(st); uid != c.Host.UID {
		return failed(name, c.DataDir+" belongs to another user", "run the server as its owner, or set STROMBOLI_DATA_DIR to a directory of your own")
	}
	return ok(name, c.DataDir)
}

// checkDatabase has the database read. Damage doesn't pass by itself.
func (c Checkup) checkDatabase(ctx context.Context) Finding {
	const name = "database"
	err := c.Database(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ok(name, "none yet")
	case errors.Is(err, context.DeadlineExceeded):
		return warning(name, "it is too large to be read to its end in this time", "nothing: a server reads it too, and tells in /health")
	case err != nil:
		return failed(name, err.Error(), "stop the server, keep a copy of stromboli.db and the files beside it, then restore a backup (docs/operations.md, Database corrupt)")
	}
	return ok(name, "read as a whole, and not damaged")
}

func isAgentImage(ref string) bool { return strings.HasPrefix(ref, agentRepository+":") }
