package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/shim"
)

const privateFile = 0o600

// writeFiles writes the run's files into the sandbox, before its hooks and the
// agent, who may change them afterwards.
func (e *execution) writeFiles(ctx context.Context) error {
	for _, f := range claude.Files(e.row.Spec.Claude) {
		path := claude.Resolve(e.box.Workdir, f.Path)
		if err := e.box.Peer.WriteFile(ctx, path, e.box.UID, e.box.GID, privateFile, bytes.NewReader(f.Content)); err != nil {
			return e.unusable(f.Field, path, "can't be written in the sandbox", err)
		}
	}
	return nil
}

// checkNeeds makes sure that what the run's options name is in the sandbox, by
// whomever it was made.
func (e *execution) checkNeeds(ctx context.Context) error {
	opts := e.row.Spec.Claude
	var dirs []string
	var of []claude.Needed
	for _, n := range claude.Needs(opts) {
		path := claude.Resolve(e.box.Workdir, n.Path)
		if n.Check == nil {
			dirs, of = append(dirs, strings.TrimSuffix(path, "/")+"/."), append(of, n)
			continue
		}
		var content bytes.Buffer
		if err := e.box.Peer.ReadFile(ctx, path, e.box.UID, e.box.GID, &content, claude.MaxConfigFile); err != nil {
			return e.unusable(n.Field, path, "can't be read in the sandbox", err)
		}
		if err := n.Check(content.Bytes()); err != nil {
			se, ok := errors.AsType[*stromboli.Error](err)
			if !ok {
				return err
			}
			return stromboli.Errorf(stromboli.NotEnforced, "the file %s: %s", path, se.Message)
		}
	}
	if len(dirs) == 0 {
		return nil
	}
	stats, err := e.box.Peer.Mounts(ctx, dirs, e.box.UID, e.box.GID)
	if err != nil {
		return fmt.Errorf("looking for the directories of the run's options: %w", err)
	}
	for i, s := range stats {
		if s.Err != "" {
			return stromboli.Errorf(stromboli.NotEnforced, "%s: %s is no directory of the sandbox (%s)", of[i].Field, of[i].Path, s.Err)
		}
	}
	return nil
}

// unusable tells what the sandbox's helper said about a file of the run; other
// errors are not about the file.
func (e *execution) unusable(field, path, what string, err error) error {
	if remote, ok := errors.AsType[*shim.RemoteError](err); ok {
		return stromboli.Errorf(stromboli.NotEnforced, "%s: %s %s: %s", field, path, what, remote.Message)
	}
	return fmt.Errorf("%s: %w", field, err)
}
