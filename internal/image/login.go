package image

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// maxAuthFile bounds a file with logins.
const maxAuthFile = 1 << 20

// authFile is a file with logins as `podman login` and `docker login` write it.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"` // base64 of user:password
	IdentityToken string `json:"identitytoken"`
}

// findLogin looks for the login for a repository: in each file the one for the
// longest path that the repository lies below, as Podman's own tools do. None
// is nil: the engine may have one of its own.
func findLogin(files []string, repository string) (*engine.Login, error) {
	for _, name := range files {
		file, err := readAuthFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the logins for registries: %w", err)
		}
		for path := repository; path != ""; path = parent(path) {
			entry, ok := file.entry(path)
			if !ok {
				continue
			}
			login, err := entry.login()
			if err != nil {
				return nil, fmt.Errorf("%s: the login for %s: %w", name, path, err)
			}
			if login != nil {
				return login, nil
			}
		}
		host, _, _ := strings.Cut(repository, "/")
		if helper := file.CredHelpers[host]; helper != "" {
			return nil, fmt.Errorf("%s keeps the login for %s with the helper %s, which the server doesn't ask: write it into a file with `podman login --authfile`, and name that by REGISTRY_AUTH_FILE", name, host, helper)
		}
	}
	return nil, nil
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return ""
	}
	return path[:i]
}

func readAuthFile(name string) (authFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return authFile{}, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
	if err != nil {
		return authFile{}, err
	}
	var out authFile
	if len(b) > maxAuthFile || json.Unmarshal(b, &out) != nil { // whose text may be a secret
		return authFile{}, fmt.Errorf("%s is not a file that podman login writes", name)
	}
	return out, nil
}

// entry finds a path's entry; older tools wrote URLs.
func (f authFile) entry(path string) (authEntry, bool) {
	if e, ok := f.Auths[path]; ok {
		return e, true
	}
	if strings.Contains(path, "/") {
		return authEntry{}, false
	}
	for key, e := range f.Auths {
		key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
		host, rest, _ := strings.Cut(key, "/")
		if host == "index.docker.io" {
			host = dockerHub
		}
		if host == path && (rest == "" || rest == "v1/" || rest == "v2/" || rest == "v1" || rest == "v2") {
			return e, true
		}
	}
	return authEntry{}, false
}

// login takes an entry apart; nil: it holds none.
func (e authEntry) login() (*engine.Login, error) {
	if e.Auth == "" && e.IdentityToken == "" {
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(e.Auth)
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok && e.IdentityToken == "" {
		return nil, errors.New("is not user:password in base64")
	}
	return &engine.Login{Username: user, Password: strings.Trim(password, "\x00"), IdentityToken: e.IdentityToken}, nil
}
