// Package policy decides, without touching anything, whether a run may be and
// with which limits, mounts, image and network addresses. It does no I/O: what
// only the file system, the engine or a resolver can tell (symlinks, whether a
// path exists, what a name points to) is found out elsewhere and, as far as it
// needs judging, handed in.
package policy
