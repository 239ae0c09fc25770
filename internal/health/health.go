// Package health keeps what is known of a server's parts: each is looked at in
// the background by a goroutine of its own, so that one which hangs delays
// neither the others nor who asks.
//
// It promises that an answer comes within Config.Patience whatever the parts
// do, and that a part which doesn't answer is told of as one that is not well.
// What the parts are, and what is a fault of one, is the caller's.
package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Part is one part of the server.
type Part struct {
	Name string
	// Look finds out how the part is: nil, or what is wrong and what to do. An
	// error that is an Impaired is a fault with which runs start all the same.
	Look func(ctx context.Context) error
}

// Impaired is a fault of a part with which runs start all the same.
type Impaired struct{ Err error }

// Error implements error.
func (e *Impaired) Error() string { return e.Err.Error() }

// Unwrap gives the fault.
func (e *Impaired) Unwrap() error { return e.Err }

// State is how a part was found.
type State struct {
	Name string
	// Fault says what is wrong and what to do; empty: nothing is.
	Fault string
	// Blocks: while this lasts no run could start.
	Blocks bool
	// Known: the part has been looked at, or has had the time to answer.
	Known bool
}

// Config makes a Monitor. Zero durations get the defaults that their comments
// name.
type Config struct {
	Parts []Part
	Every time.Duration // between two looks at a part that is well; 5 s
	Again time.Duration // between two looks at one that isn't; 500 ms
	Fresh time.Duration // how old the state of a part that is well may be for who asks; 250 ms
	// Patience is how long who asks waits for a look; 250 ms.
	Patience time.Duration
	Limit    time.Duration // of a look; 3 s
	// Changed, if set, is told of the first look at each part, and when one is found
	// to be well that wasn't, or not to be well, or for another reason. It must be
	// quick.
	Changed func(before, now State)
}

// Monitor looks at parts.
type Monitor struct {
	cfg   Config
	parts []*part
}

// New makes a Monitor that knows nothing before Run.
func New(cfg Config) *Monitor {
	for d, or := range map[*time.Duration]time.Duration{
		&cfg.Every: 5 * time.Second, &cfg.Again: 500 * time.Millisecond, &cfg.Fresh: 250 * time.Millisecond,
		&cfg.Patience: 250 * time.Millisecond, &cfg.Limit: 3 * time.Second,
	} {
		if *d <= 0 {
			*d = or
		}
	}
	m := &Monitor{cfg: cfg}
	for _, p := range cfg.Parts {
		m.parts = append(m.parts, &part{Part: p, asked: make(chan struct{}, 1), looked: make(chan struct{})})
	}
	return m
}

// Run looks at the parts until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, p := range m.parts {
		all.Go(func() { m.watch(ctx, p) })
	}
	all.Wait()
	return nil
}

// Ask tells how the parts are, in the order of Config.Parts: those that were
// well as they were Config.Fresh ago at most, others as they are now. What
// hasn't answered within Config.Patience is told of as it was before.
func (m *Monitor) Ask(ctx context.Context) []State {
	patience := time.NewTimer(m.cfg.Patience)
	defer patience.Stop()
	for _, p := range m.parts {
		looked := p.ask(m.cfg)
		if looked == nil {
			continue
		}
		select {
		case <-looked:
		case <-patience.C:
			return m.Known()
		case <-ctx.Done():
			return m.Known()
		}
	}
	return m.Known()
}

// Known tells how the parts were when they were last looked at. It doesn't wait.
func (m *Monitor) Known() []State {
	out := make([]State, 0, len(m.parts))
	for _, p := range m.parts {
		out = append(out, p.now(m.cfg))
	}
	return out
}

// part is a Part and what is known of it.
type part struct {
	Part
	asked chan struct{} // one slot: somebody wants to know now

	mu     sync.Mutex
	state  State
	at     time.Time     // when the last look began
	begun  time.Time     // when the look that goes on began; zero: none does
	looked chan struct{} // closed, and made anew, at the end of each look
}

// ask has the part looked at if that is due, and returns what to wait for, if
// anything.
func (p *part) ask(cfg Config) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.begun.IsZero() && time.Since(p.begun) > cfg.Patience:
		return nil // it hangs: whoever asked when it began has waited
	case !p.begun.IsZero():
	case p.state.Known && p.state.Fault == "" && time.Since(p.at) < cfg.Fresh:
		return nil
	default:
		select {
		case p.asked <- struct{}{}:
		default:
		}
	}
	return p.looked
}

// now is the state, or that the part doesn't answer.
func (p *part) now(cfg Config) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if over := time.Since(p.begun); !p.begun.IsZero() && over > cfg.Limit+cfg.Patience {
		return State{Name: p.Name, Known: true, Blocks: true, Fault: fmt.Sprintf("it hasn't answered for %s", over.Round(time.Second))}
	}
	state := p.state
	if state.Name = p.Name; !state.Known {
		state.Fault, state.Blocks = "it hasn't been looked at yet", true
	}
	return state
}

func (m *Monitor) watch(ctx context.Context, p *part) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.asked:
		}
		if ctx.Err() != nil {
			return
		}
		now, ok := m.look(ctx, p)
		if !ok {
			return
		}
		timer.Reset(m.pause(now))
	}
}

func (m *Monitor) pause(s State) time.Duration {
	if s.Fault != "" {
		return m.cfg.Again
	}
	return m.cfg.Every
}

// look looks at a part once; what is found while ctx ends is no finding.
func (m *Monitor) look(ctx context.Context, p *part) (State, bool) {
	p.mu.Lock()
	p.begun = time.Now()
	p.mu.Unlock()
	err := m.bounded(ctx, p)
	if ctx.Err() != nil {
		return State{}, false
	}
	now := State{Name: p.Name, Known: true}
	if err != nil {
		_, impaired := errors.AsType[*Impaired](err)
		now.Fault, now.Blocks = err.Error(), !impaired
	}
	p.mu.Lock()
	before := p.state
	p.state, p.at, p.begun = now, p.begun, time.Time{}
	close(p.looked)
	p.looked = make(chan struct{})
	p.mu.Unlock()
	if m.cfg.Changed != nil && (!before.Known || before.Fault != now.Fault || before.Blocks != now.Blocks) {
		before.Name = p.Name
		m.cfg.Changed(before, now)
	}
	return now, true
}

// bounded is one look, for which Config.Limit is left.
func (m *Monitor) bounded(ctx context.Context, p *part) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Limit)
	defer cancel()
	err := p.Look(ctx)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("it hasn't answered within %s: %w", m.cfg.Limit, err)
	}
	return err
}
