package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// Images fetches images that are not on this machine.
type Images interface {
	// Pull returns when the image is there. progress is called by this goroutine,
	// the first time at once. It can be repeated, and who asks for an image that
	// is being pulled waits for that pull.
	Pull(ctx context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error)
}

// judgeImage judges a run's image once this host has been asked about it. One
// that is absent and may be pulled stays an ErrImageAbsent.
func (r *Runner) judgeImage(image string, checked sandbox.Plan, err error) error {
	if err == nil {
		return r.policy().MayUseImage(image, checked.ImageNames)
	}
	if !errors.Is(err, sandbox.ErrImageAbsent) {
		return err
	}
	name, perr := policy.ParseImageName(image)
	rules := r.policy()
	allowed := rules.ImagePatterns
	if perr != nil || len(allowed) == 0 || image == rules.Image && !allowed.Allow(name) {
		return stromboli.Errorf(stromboli.ImageMissing, "image %q is not on this machine: pull or build it first (`stromboli setup --image` makes the agent image), "+
			"or let the server pull it (%s)", image, policy.ImagePatternsSetting)
	}
	if perr := allowed.MayPull("podman.image", name); perr != nil {
		return perr
	}
	return err
}

// checkAgain judges the plan by this host once more, as the run waited since or
// its image had to be pulled, and pulls the image if it is not there.
func (e *execution) checkAgain(ctx context.Context) error {
	checked, err := e.r.check(ctx, e.plan, e.row.Spec.Claude)
	if errors.Is(err, sandbox.ErrImageAbsent) {
		if err := e.pullImage(ctx); err != nil {
			return err
		}
		checked, err = e.r.check(ctx, e.plan, e.row.Spec.Claude)
	}
	if err != nil {
		return err
	}
	e.checked = &checked
	return nil
}

// pullImage fetches the run's image. A server's death in between leaves nothing
// to be undone: the next one comes here again.
func (e *execution) pullImage(ctx context.Context) error {
	if err := e.enter(ctx, stromboli.PhasePulling); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var told pace
	pulled, err := e.r.cfg.Images.Pull(ctx, stromboli.ImageWish{Name: e.plan.Image}, func(p stromboli.ImageProgress) {
		if !told.due(p, e.age()) {
			return
		}
		if err := e.update(ctx, stromboli.RunUpdate{Events: []stromboli.Event{event(stromboli.EventImageProgress, p)}}); err != nil {
			stop(err)
		}
	})
	if err != nil {
		return imageFailure(err)
	}
	e.plan.Image = pulled.Name // a short name may mean another one to the engine
	return e.enter(ctx, stromboli.PhaseCreating)
}

// enter records that the run is in a phase.
func (e *execution) enter(ctx context.Context, phase stromboli.Phase) error {
	return e.update(ctx, stromboli.RunUpdate{Phase: &phase, Events: []stromboli.Event{event(stromboli.EventPhase, stromboli.PhaseData{Phase: phase})}})
}

// imageFailure makes the error of a pull one of the run's image, unless the
// engine or its disk is at fault.
func imageFailure(err error) error {
	e, ok := errors.AsType[*stromboli.Error](err)
	if !ok || e.Code == stromboli.EngineDown || e.Code == stromboli.StorageFull {
		return fmt.Errorf("pulling the image: %w", err)
	}
	return stromboli.Errorf(stromboli.ImageMissing, "the image could not be pulled: %s", e.Message).WithCause(err)
}

// pace bounds how many progress events a run gets: each stage, and within one
// at first one a second, later ever fewer, so that their number grows with the
// logarithm of the time.
type pace struct {
	stage stromboli.ImageStage
	next  time.Duration
	told  int
}

const paceStep = 16 // events, after which the interval doubles

func (p *pace) due(now stromboli.ImageProgress, at time.Duration) bool {
	if now.Stage == p.stage && at < p.next {
		return false
	}
	p.stage = now.Stage
	p.next = at + time.Second<<min(p.told/paceStep, 10)
	p.told++
	return true
}
