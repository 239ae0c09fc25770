package sandbox

// volumeRules say which host directories volumes may be. They don't change;
// SetVolumes puts others in their place.
type volumeRules struct {
	allowed   []string // roots
	protected []string // never, whatever is allowed
}

// SetVolumes says which volumes sandboxes may get that are planned from now on.
func (m *Manager) SetVolumes(allowed, protected []string) {
	m.volumes.Store(&volumeRules{allowed: allowed, protected: protected})
}
