package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// A run's stream is made from its stored events, each line of it with a
// position, so that a client that repeats its request goes on where it was:
//
//   - format text: the lines of the assistant's completed text blocks;
//   - stream-json: the lines of the CLI's standard output, verbatim;
//   - json: the run's output, one line, at the end.
//
// A line that doesn't fit into an event of 1 MiB is replaced by
// {"cut":true,"bytes":…,"href":…}; href gives the whole event that it is from.

func (a *API) runStreamGet(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	if r.Method == http.MethodHead { // the route acts, HEAD must not
		w.Header().Set("Allow", "GET, POST")
		return stromboli.Errorf(stromboli.MethodForbidden, "HEAD is not allowed here")
	}
	q, err := query(r)
	if err != nil {
		return err
	}
	if err := onlyParams(q, "prompt", "workdir", "session_id", "run"); err != nil {
		return err
	}
	pos, resume, err := resumed(r, q)
	if err != nil {
		return err
	}
	if err := a.dropBody(w, r); err != nil {
		return err
	}
	if resume {
		return a.resume(w, r, p, pos)
	}
	s := stromboli.Submission{Kind: stromboli.KindStream, Idempotency: stromboli.Idempotency{Endpoint: "GET /run/stream"}}
	s.Spec.Prompt, s.Spec.Workdir = q.Get("prompt"), q.Get("workdir")
	s.Spec.Claude.SessionID = q.Get("session_id")
	s.ResumeIfExists = s.Spec.Claude.SessionID != ""
	if err := checkPrompt(s.Spec.Prompt); err != nil {
		return err
	}
	if s.Idempotency.Hash, err = specHash(s.Spec); err != nil {
		return err
	}
	return a.submitAndStream(w, r, p, s)
}

func (a *API) runStreamPost(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	pos, resume, err := resumed(r, q)
	if err != nil {
		return err
	}
	if resume {
		if err := a.dropBody(w, r); err != nil {
			return err
		}
		return a.resume(w, r, p, pos)
	}
	s, err := a.readSubmission(w, r, stromboli.KindStream, "POST /run/stream")
	if err != nil {
		return err
	}
	return a.submitAndStream(w, r, p, s)
}

func (a *API) submitAndStream(w http.ResponseWriter, r *http.Request, p stromboli.Principal, s stromboli.Submission) error {
	run, err := a.submit(r, p, s)
	if err != nil {
		return err
	}
	return a.stream(w, r, p, run, position{RunID: run.ID})
}

func (a *API) resume(w http.ResponseWriter, r *http.Request, p stromboli.Principal, pos position) error {
	run, err := a.cfg.Runs.Get(r.Context(), p, pos.RunID)
	if err != nil {
		return err
	}
	if run.Status.Terminal() && pos.Seq == run.LastSeq && pos.Piece == 0 {
		w.WriteHeader(http.StatusNoContent) // stops an EventSource for good
		return nil
	}
	return a.stream(w, r, p, run, pos)
}

// stream sends the run's stream after pos. It always returns nil: once it has
// begun there is no other answer.
func (a *API) stream(w http.ResponseWriter, r *http.Request, p stromboli.Principal, run stromboli.Run, pos position) error {
	s := &runStream{api: a, out: a.startStream(w), principal: p, run: run, pos: pos, full: r.Method == http.MethodPost}
	if pos.Seq > run.LastSeq {
		// From another life of the data: go on at the end, and say so there.
		s.lost = true
		s.pos = position{RunID: run.ID, Seq: run.LastSeq}
		if run.Status.Terminal() {
			s.pos.Seq--
		}
	}
	here := a.arrive(r, p, run)
	err := s.out.open(s.pos.String())
	if err == nil {
		after, _ := s.pos.start()
		err = a.pump(r.Context(), s.out, run.ID, after, func(ev stromboli.Event) (bool, error) { return s.send(r.Context(), ev) }) //nolint:contextcheck // it is the request's
	}
	here.leave(a.ended(r.Context(), run.ID, err), a.cfg.DisconnectGrace)
	return nil
}

// runStream is one client's view of one run.
type runStream struct {
	api       *API
	out       *sse
	principal stromboli.Principal
	run       stromboli.Run
	pos       position // where it began
	full      bool     // the client knows more than the first clients did
	lost      bool     // positions were gone
}

func (s *runStream) send(ctx context.Context, ev stromboli.Event) (last bool, err error) {
	switch ev.Type {
	case stromboli.EventOutput:
		return false, s.lines(ev, s.pieces(ev))
	case stromboli.EventText, stromboli.EventSuperseded:
		if s.full && s.format() == stromboli.OutputText && s.run.Spec.Claude.IncludePartialMessages {
			at := position{RunID: s.run.ID, Seq: ev.Seq}
			return false, s.out.event(at.String(), string(ev.Type), dataOf(ev), func() []byte { return cutData(ev, len(ev.Data)) })
		}
	case stromboli.EventTruncated:
		s.lost = true
	case stromboli.EventRunFinished:
		return true, s.finish(ctx, ev)
	default: // for those who follow the run's events
	}
	return false, nil
}

func (s *runStream) format() stromboli.OutputFormat {
	if f := s.run.Spec.Claude.OutputFormat; f != "" {
		return f
	}
	return stromboli.OutputText
}

// pieces are the lines of the stream that one output event makes.
func (s *runStream) pieces(ev stromboli.Event) []string {
	if s.format() == stromboli.OutputJSON {
		return nil
	}
	var line struct {
		stromboli.OutputData
		stromboli.CutData
	}
	if err := json.Unmarshal(ev.Data, &line); err != nil || line.Stream == "stderr" {
		return nil
	}
	if line.Cut {
		return []string{string(ev.Data)}
	}
	if s.format() == stromboli.OutputStreamJSON {
		if !s.api.cfg.Visible([]byte(line.Line)) {
			return nil
		}
		return []string{strings.TrimRight(line.Line, "\r\n")}
	}
	var all []string
	for _, text := range s.api.cfg.Render([]byte(line.Line)) {
		all = append(all, splitLines(text)...)
	}
	return all
}

// splitLines splits at every kind of line break that an event stream knows.
func splitLines(s string) []string {
	if !strings.ContainsAny(s, "\r\n") {
		return []string{s}
	}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Split(strings.ReplaceAll(s, "\r", "\n"), "\n")
}

// lines sends the pieces of an event that the client hasn't got.
func (s *runStream) lines(ev stromboli.Event, pieces []string) error {
	_, skip := s.pos.start()
	for i, piece := range pieces {
		at := position{RunID: s.run.ID, Seq: ev.Seq}
		if len(pieces) > 1 {
			at.Piece = int64(i) + 1
		}
		if ev.Seq == s.pos.Seq && int64(i) < skip {
			continue
		}
		err := s.out.event(at.String(), "", []byte(piece), func() []byte { return cutData(ev, len(piece)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// doneData is the data of a stream's last event.
type doneData struct {
	ID               string               `json:"id"`
	SessionID        string               `json:"session_id"`
	SessionAlias     string               `json:"session_alias,omitempty"`
	Status           stromboli.Status     `json:"status"`
	StructuredOutput json.RawMessage      `json:"structured_output,omitempty"`
	CrashInfo        *stromboli.CrashInfo `json:"crash_info,omitempty"`
	Usage            *stromboli.Usage     `json:"usage,omitempty"`
	Reason           stromboli.Reason     `json:"reason,omitempty"`
	Warnings         []stromboli.Warning  `json:"warnings"`
	// Cut: the event would have been too large; Href has everything.
	Cut  bool   `json:"cut,omitempty"`
	Href string `json:"href,omitempty"`
}

// finish sends done, or error for runs that failed or were cancelled. The run
// is read again: its record is terminal and its session free by now.
func (s *runStream) finish(ctx context.Context, ev stromboli.Event) error {
	run, err := s.api.cfg.Runs.Get(ctx, s.principal, s.run.ID)
	if err != nil {
		return fmt.Errorf("get %s: %w", s.run.ID, err)
	}
	if s.format() == stromboli.OutputJSON && run.Outcome.Output != "" {
		// One line at most, so that "/seq.1" is its position and "/seq" done's.
		_, skip := s.pos.start()
		if ev.Seq != s.pos.Seq || skip == 0 {
			at := position{RunID: run.ID, Seq: ev.Seq, Piece: 1}
			out := strings.TrimRight(run.Outcome.Output, "\r\n")
			if err := s.out.event(at.String(), "", []byte(out), func() []byte { return cutData(ev, len(out)) }); err != nil {
				return err
			}
		}
	}
	at := position{RunID: run.ID, Seq: ev.Seq}.String()
	if run.Status != stromboli.Completed && run.Status != stromboli.Crashed {
		return s.out.event(at, "error", []byte(oneLine(failureText(run), 64<<10)), func() []byte { return []byte("the run failed") })
	}
	r := resultOf(run)
	done := doneData{
		ID: run.ID, SessionID: r.SessionID, SessionAlias: r.SessionAlias, Status: run.Status, StructuredOutput: r.StructuredOutput,
		CrashInfo: r.CrashInfo, Usage: r.Usage, Reason: r.Reason, Warnings: r.Warnings,
	}
	if s.lost {
		done.Warnings = append(done.Warnings, stromboli.Warning{
			Code: "truncated", Message: "some of the stream was gone already when the client came back",
		})
	}
	b, err := encode(done)
	if err != nil {
		return fmt.Errorf("encode the end of %s: %w", run.ID, err)
	}
	return s.out.event(at, "done", b, func() []byte {
		small := doneData{
			ID: run.ID, SessionID: r.SessionID, SessionAlias: r.SessionAlias, Status: run.Status, Reason: r.Reason, Usage: r.Usage,
			Warnings: []stromboli.Warning{}, Cut: true, Href: "/jobs/" + stromboli.JobID(run.ID),
		}
		if c := r.CrashInfo; c != nil {
			small.CrashInfo = &stromboli.CrashInfo{ExitCode: c.ExitCode, Signal: c.Signal, Reason: oneLine(c.Reason, 4<<10), TaskCompleted: c.TaskCompleted}
		}
		b, err := encode(small)
		if err != nil {
			return []byte("{}") // strings and numbers always encode
		}
		return b
	})
}
