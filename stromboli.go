// Package stromboli holds the nouns of the project: runs, sessions, events,
// usage, errors. It does no I/O and imports nothing but the standard library,
// so that every other package, the client included, speaks of the same things.
//
// A run is one prompt given to one Claude Code agent in one sandbox. It is a
// durable record: POST /run, POST /run/async and /run/stream make the same
// kind of row and differ only in how their caller waits for it.
//
// A session is a conversation that outlives runs: its transcript, its home
// directory and its workspace. A session has at most one active run.
package stromboli

// DefaultTenant owns everything while no token names another tenant.
const DefaultTenant = "default"
