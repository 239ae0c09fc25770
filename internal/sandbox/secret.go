package sandbox

import (
	"context"
	"slices"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// engineSecrets are the mounts of secrets that the engine keeps. They are asked
// for by id: a name that has gone could be the beginning of another one's id,
// which the engine takes as well.
func (m *Manager) engineSecrets(ctx context.Context, names []string) ([]engine.SecretMount, error) {
	if len(names) == 0 {
		return nil, nil
	}
	list, err := m.cfg.Engine.SecretList(ctx)
	if err != nil {
		return nil, engineError(err)
	}
	mounts := make([]engine.SecretMount, 0, len(names))
	for i, name := range names {
		at := slices.IndexFunc(list, func(s engine.Secret) bool { return s.Name == name })
		if at < 0 {
			return nil, stromboli.Errorf(stromboli.NotConfigured, "the engine's secret %s was deleted before the run started", name)
		}
		mounts = append(mounts, engine.SecretMount{Secret: list[at].ID, Target: shim.SecretsDir + "/" + shim.SecretFile(i)})
	}
	return mounts, nil
}

// EngineSecrets lists the names of the secrets that the engine keeps.
func (m *Manager) EngineSecrets(ctx context.Context) ([]string, error) {
	list, err := m.cfg.Engine.SecretList(ctx)
	if err != nil {
		return nil, engineError(err)
	}
	names := make([]string, 0, len(list))
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, nil
}

// secrets judges the engine's secrets: each is there, for the sandbox's root
// alone, and none that wasn't asked for.
func (j *judgement) secrets(mounted map[string]shim.MountFact) {
	facts := map[string]shim.SecretFact{}
	for _, f := range j.facts.Secrets {
		facts[shim.SecretsDir+"/"+f.File] = f
	}
	for _, want := range j.spec.Secrets {
		m, ok := mounted[want.Target]
		j.unless(ok && m.RO, "no secret is mounted read-only at %s", want.Target)
		f, there := facts[want.Target]
		delete(facts, want.Target)
		j.unless(there && f.Read && f.UID == 0 && f.Mode.IsRegular() && f.Mode.Perm() == secretMode,
			"the secret at %s is not a file of the sandbox's root alone (uid %d, %s)", want.Target, f.UID, f.Mode)
		j.unless(!f.Agent, "the agent can read the secret at %s", want.Target)
	}
	for target := range facts {
		j.unless(false, "there is a secret at %s that nobody has asked for", target)
	}
}

// secretMode is that of a secret's file.
const secretMode = 0o400
