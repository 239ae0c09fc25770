// Package claude speaks the agent CLI's language and nothing else: it turns
// options into a command line and an environment, writes the messages that go
// to the CLI's standard input, and turns the lines that come back into events,
// usage and the run's outcome.
//
// It is pure: no files, no processes, no clock. A Turn that is fed the same
// lines again reaches the same state, so a server that has just started
// rebuilds it from the stored events.
//
// Everything that the CLI prints is hostile. A line of any shape is kept as an
// output event and can at most say something wrong about its own run; what a
// Turn keeps in memory is bounded.
//
// The facts about the CLI were measured with version 2.1.330; recordings of
// it are in testdata.
package claude
