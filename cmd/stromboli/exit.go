package main

import "github.com/tomblancdev/stromboli"

// Exit codes of `stromboli run`.
const (
	exitFailed    = 1
	exitCrashed   = 3
	exitTimeout   = 124
	exitCancelled = 130
)

// exitCode is the exit code for a run's outcome.
func exitCode(status stromboli.Status, reason stromboli.Reason) int {
	switch status {
	case stromboli.Completed:
		return 0
	case stromboli.Crashed:
		return exitCrashed
	case stromboli.Cancelled:
		return exitCancelled
	case stromboli.Failed:
		if reason == stromboli.ReasonTimeout {
			return exitTimeout
		}
	case stromboli.Pending, stromboli.Running:
	}
	return exitFailed
}
