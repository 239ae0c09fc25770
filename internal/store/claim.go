package store

import "github.com/tomblancdev/stromboli"

// claimSession decides which session the run belongs to, makes it where it is
// new, and gives it to the run.
func (s *Store) claimSession(t *tx, in *newRun) error {
	have, exists, err := in.find(t)
	switch {
	case err != nil:
		return err
	case !exists && in.Continue != "":
		return stromboli.Errorf(stromboli.NotFound, "there is no conversation in this workspace to continue: "+
			"none of your sessions has worked in it (the same source mounted at the same workdir or, without a mount, the same workdir)")
	case !exists && (in.CreateSession == nil || in.Fork):
		return errNoSession(in.name())
	case !exists:
		return s.makeSession(t, in, stromboli.Session{})
	case have.Deleting && have.Tenant == in.Run.Tenant:
		return errDeleting(have.ID)
	case !in.resumes():
		return stromboli.Errorf(stromboli.SessionExists, "session %s exists already: set resume to go on with it", in.name())
	case have.Tenant != in.Run.Tenant:
		return errNoSession(in.name())
	case have.ActiveRun != "":
		return stromboli.Errorf(stromboli.SessionBusy, "session %s is in use by %s", have.ID, have.ActiveRun)
	case in.Fork:
		in.Run.Spec.Claude.Resume = true
		return s.makeSession(t, in, have)
	}
	if fork, pending, err := t.session(`WHERE s.forked_from = ? AND s.fork_pending = 1 LIMIT 1`, have.ID); err != nil {
		return err
	} else if pending {
		return stromboli.Errorf(stromboli.SessionBusy, "session %s is about to be copied by %s, which forks it", have.ID, fork.ActiveRun)
	}
	in.Run.SessionID, in.Run.SessionAlias, in.Run.Spec.Claude.Resume = have.ID, have.Alias, true
	_, err = t.exec(`UPDATE sessions SET active_run = ?, updated_at = ? WHERE id = ?`, in.Run.ID, s.millis(in.Run.CreatedAt), have.ID)
	return err
}

// find reads the session that the run names. With an id it may be another
// tenant's.
func (in *newRun) find(t *tx) (stromboli.Session, bool, error) {
	switch {
	case in.Continue != "":
		// A session that ended without a conversation has nothing to continue.
		return t.session(`JOIN session_workspaces w ON w.session = s.id AND w.tenant = s.tenant
			WHERE w.tenant = ? AND w.workspace = ? AND s.ephemeral = 0 AND s.deleted_at = 0 AND (s.transcript_key <> '' OR s.active_run <> '')
			ORDER BY w.run DESC LIMIT 1`, in.Run.Tenant, in.Continue)
	case in.SessionAlias != "":
		return t.session(`WHERE s.tenant = ? AND s.alias = ?`, in.Run.Tenant, in.SessionAlias)
	case in.ResumeSession != "":
		return t.session(`WHERE s.id = ?`, in.ResumeSession)
	}
	return t.session(`WHERE s.id = ?`, in.Run.SessionID)
}

// name is what the caller calls the session.
func (in *newRun) name() string {
	switch {
	case in.SessionAlias != "":
		return in.SessionAlias
	case in.ResumeSession != "":
		return in.ResumeSession
	}
	return in.Run.SessionID
}

// resumes reports whether a session that exists is what the caller wants.
func (in *newRun) resumes() bool {
	return in.Continue != "" || in.ResumeSession != "" || in.SessionAlias != "" && in.Resume
}

// makeSession makes the run's session: a new one, or a fork of source, whose
// files have yet to be copied.
func (s *Store) makeSession(t *tx, in *newRun, source stromboli.Session) error {
	r := &in.Run
	made := *in.CreateSession
	made.Alias = in.SessionAlias
	if in.Fork {
		made.Alias, made.UID, made.GID = "", source.UID, source.GID // the alias is the source's
		if !made.Hooks.Creates() {
			made.Hooks = source.Hooks
		}
	}
	hooks := ""
	if made.Hooks.Creates() {
		var err error
		if hooks, err = text(made.Hooks.Create()); err != nil {
			return err
		}
	}
	if made.CLISessionID == "" {
		made.CLISessionID = r.SessionID
	}
	var alias *string
	if made.Alias != "" {
		alias = &made.Alias
	}
	r.SessionAlias = made.Alias
	now := s.millis(r.CreatedAt)
	_, err := t.exec(`INSERT INTO sessions (id, tenant, created_by, cli_session_id, alias, ephemeral, forked_from, fork_pending, active_run,
		uid, gid, title, created_at, updated_at, create_hooks) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.SessionID, r.Tenant, r.CreatedBy, made.CLISessionID, alias, made.Ephemeral, source.ID, in.Fork, r.ID, made.UID, made.GID, made.Title, now, now, hooks)
	return err
}
