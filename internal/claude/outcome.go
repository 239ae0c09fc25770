package claude

import (
	"fmt"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Causes of an ending that was brought about from outside. Others, such as the
// end of a wait for background tasks, leave the judgement to the last result.
const (
	CauseDeadline   = "deadline" // the run's time limit
	CauseOrphaned   = "orphaned" // no server was there for too long
	CauseDisk       = "disk"     // the sandbox's limit of the disk
	CauseRequest    = string(stromboli.ReasonRequest)
	CauseDisconnect = string(stromboli.ReasonDisconnect)
)

// Exit tells how the CLI's process ended.
type Exit struct {
	Code   int
	Signal string // such as "SIGKILL"; empty when it exited by itself
	OOM    bool   // the kernel killed something in the sandbox for its memory
	Cause  string // why it was ended from outside, empty when it was not
}

// Outcome judges the run. exit is nil when nobody saw the process's end
// because its sandbox is gone.
//
// A cancellation beats everything. Then a last word that is a result decides,
// whatever the process's exit, unless a time limit ended background work that
// the run still waited for. A run whose
// last turn has no result crashed, unless its time, its orphan limit or its limit
// of the disk was up (then it failed) or the disk was full.
//
// The output is, by format: text, what the CLI prints in that mode without the
// last newline (the texts of several results are separated by an empty line;
// a turn that was aborted or has no result gives the text blocks that were
// complete); json, the last result line, or with verbose the list of what stream-json
// gives as lines; stream-json, the lines of standard
// output that Visible lets through. It is at most 8 MiB, save for the result
// line after a cut; longer text loses its beginning, longer stream-json gets
// a marker line {"type":"stromboli","subtype":"output_cut"} in place of its
// later lines, both with the warning output_cut.
func (t *Turn) Outcome(exit *Exit) stromboli.Outcome {
	out := stromboli.Outcome{SessionID: t.sessionID}
	var cause string
	if exit != nil {
		cause = exit.Cause
	}
	switch {
	case cause == CauseRequest, cause == CauseDisconnect:
		out.Status, out.Reason, out.Error = stromboli.Cancelled, stromboli.Reason(cause), "the run was cancelled"
	case t.Over() && (!t.cutOff || cause != CauseDeadline && cause != CauseOrphaned && cause != CauseDisk):
		t.judge(&out)
	case cause == CauseDeadline:
		fail(&out, stromboli.ReasonTimeout, "the run passed its time limit")
	case cause == CauseOrphaned:
		fail(&out, stromboli.ReasonOrphaned, "the agent was ended because no server was there for longer than the orphan timeout")
	case cause == CauseDisk:
		fail(&out, stromboli.ReasonDisk, "the sandbox took more of the disk than its limit, STROMBOLI_RESOURCES_DISK")
	case t.Answered(), t.results > 0 && cause != "":
		t.judge(&out)
	default:
		t.crash(&out, exit)
	}
	if out.Status == stromboli.Completed && exit != nil && cause == "" && (exit.Code != 0 || exit.Signal != "") {
		t.warn(WarnUnclean, "the agent's process "+exit.describe()+" after its result was complete")
	}
	out.StructuredOutput = compact(t.structured)
	out.Output = t.output()
	out.Usage = t.usage.total()
	out.Warnings = append(out.Warnings, t.warnings...)
	return out
}

// crash describes a process that ended in the middle of a turn.
func (t *Turn) crash(out *stromboli.Outcome, exit *Exit) {
	stderr := t.stderr.String()
	if exit != nil && diskFull(stderr) {
		fail(out, stromboli.ReasonDisk, "the disk is full: "+stderr)
		return
	}
	out.Status = stromboli.Crashed
	info := &stromboli.CrashInfo{
		PartialOutput: lastBytes(t.answer.joined(), maxPartial),
		TaskCompleted: t.results > 0 && !t.last.failed,
	}
	out.CrashInfo = info
	if exit == nil {
		info.ExitCode = -1
		out.Reason = stromboli.ReasonLost
		out.Error = "the sandbox is gone, and the agent's end was not seen"
		info.Reason = out.Error
		return
	}
	info.ExitCode, info.Signal = exit.Code, exit.signal()
	switch {
	case exit.OOM && (exit.Code != 0 || exit.Signal != ""):
		out.Reason = stromboli.ReasonOOM
		out.Error = "the agent was killed because the sandbox's memory was used up; podman.memory sets its limit"
	case info.Signal != "":
		out.Reason = stromboli.ReasonSignal
		out.Error = "the agent's process " + exit.describe()
	default:
		out.Reason = stromboli.ReasonExit
		out.Error = "the agent's process " + exit.describe() + " without a result"
	}
	info.Reason = out.Error
	if stderr != "" {
		out.Error += ": " + stderr
	}
}

// signal is the signal that ended the process; the CLI reports some of them
// through its exit code, as shells do.
func (e Exit) signal() string {
	if e.Signal != "" {
		return e.Signal
	}
	switch e.Code - 128 {
	case 1:
		return "SIGHUP"
	case 2:
		return "SIGINT"
	case 6:
		return "SIGABRT"
	case 9:
		return "SIGKILL"
	case 11:
		return "SIGSEGV"
	case 15:
		return "SIGTERM"
	}
	return ""
}

func (e Exit) describe() string {
	if s := e.signal(); s != "" {
		return "was ended by " + s
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}

// lines are the lines that were printed, which hold no newline themselves.
func (t *Turn) lines() string {
	if t.printed.dropped > 0 {
		t.warn(WarnOutputCut, "the output is longer than what is kept; all of its lines are in the run's events")
	}
	return t.printed.render(t.lastRaw)
}

func (t *Turn) output() string {
	switch t.format {
	case stromboli.OutputJSON:
		if !t.all {
			return string(t.lastRaw)
		}
		return "[" + strings.ReplaceAll(t.lines(), "\n", ",") + "]"
	case stromboli.OutputStreamJSON:
		return t.lines()
	case stromboli.OutputText, "":
	}
	texts := t.texts.parts
	if !t.Answered() && !t.answer.empty() {
		texts = append(texts[:len(texts):len(texts)], t.answer.joined())
	}
	return strings.Join(texts, "\n\n")
}
