package enginetest_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

func TestFakeConforms(t *testing.T) {
	defer goleak.VerifyNone(t)
	f := enginetest.NewFake(enginetest.FakeConfig{})
	defer f.Close()
	t.Run("suite", func(t *testing.T) {
		enginetest.Conformance(t, enginetest.Load(t, f, []byte("probe")))
	})
}

func TestFakeFails(t *testing.T) {
	want := errors.New("down")
	f := enginetest.NewFake(enginetest.FakeConfig{Fail: func(method string) error {
		if method == "Create" {
			return want
		}
		return nil
	}})
	defer f.Close()
	if _, err := f.Create(t.Context(), engine.ContainerSpec{}); !errors.Is(err, want) {
		t.Errorf("create: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ping: %v", err)
	}
}
