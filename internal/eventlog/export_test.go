package eventlog

// Followed is the number of runs that are kept in memory.
func (l *Log) Followed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs)
}
