// Package shim is the first process of every sandbox and the server's end of
// the line to it.
//
// In the sandbox (Main) it is PID 1: it reaps, starts the one agent as a user
// without any capability, owns its stdin, stdout and stderr, numbers every
// line and spools it before anyone sees it, forwards the sandbox's loopback
// port to the egress process, and ends the agent when it is told to, when the
// agent's deadline passes, or when no server has been there for too long. It
// dials the server, never listens for it, and goes on without one.
//
// On the server (Peer) it is the other end: it decides who may call, gives
// lines in order and exactly as often as asked, and repeats requests across
// reconnects, all of which are idempotent.
//
// What it promises: a line that the agent has written is kept until it is
// acknowledged, or until the sandbox dies; lines have consecutive numbers; a
// frame to stdin is written at most once; the shim exits only when told.
// When the spool is full the agent waits; nothing is dropped but the rest of
// an overlong line, and that is marked.
//
// What it refuses: touching any file of the agent as root (helpers do that,
// after becoming the agent's user for good), starting an agent as uid 0,
// starting a second agent, and running as anything but PID 1.
package shim
