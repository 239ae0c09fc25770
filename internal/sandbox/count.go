package sandbox

// Counts are sandboxes by state.
type Counts struct {
	Starting int // being made, until their container has started
	Running  int
	Ending   int // being discarded, or yet to be
}

// Counts counts this server's sandboxes.
func (m *Manager) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	var c Counts
	for _, box := range m.boxes {
		if box.started.Load() {
			c.Running++
		} else {
			c.Starting++
		}
	}
	c.Ending = len(m.ending)
	for id := range m.ours {
		if m.boxes[id] == nil && !m.ending[id] {
			c.Starting++
		}
	}
	return c
}
