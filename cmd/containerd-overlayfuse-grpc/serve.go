package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
	"github.com/overlayfuse/overlayfuse-snapshotter/snapshotter"
)

// stopTimeout is how long calls may go on after the first signal.
const stopTimeout = 30 * time.Second

// serve runs the service until a signal or the context ends it. No mount is touched at the end.
func serve(ctx context.Context, cfg config.Config) (err error) {
	log := setUpLog(cfg.Log, os.Stderr)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)

	sn, err := snapshotter.New(ctx, snapshotterConfig(cfg, log))
	if err != nil {
		return err
	}
	defer func() {
		if cerr := sn.Close(); err == nil {
			err = cerr
		}
	}()
	listener, err := listen(cfg.Address.String())
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	log.WithFields(logrus.Fields{"address": cfg.Address.String(), "root": cfg.Root.String(), "server": cfg.Server.Socket.String()}).Info("serving")
	if err := notify("READY=1"); err != nil {
		log.WithError(err).Warn("nobody knows that we are ready")
	}
	cleaning, stopCleaning := context.WithCancel(ctx)
	cleaned := make(chan struct{})
	go func() {
		defer close(cleaned)
		// what a crash left, and what was removed since the last garbage collection
		if err := sn.Cleanup(cleaning); err != nil && cleaning.Err() == nil {
			log.WithError(err).Warn("cleanup at the start")
		}
	}()
	defer func() {
		stopCleaning()
		<-cleaned
	}()

	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	case sig := <-signals:
		log.WithField("signal", sig).Info("stopping; mounts go on")
	}
	if err := notify("STOPPING=1"); err != nil {
		log.WithError(err).Warn("nobody knows that we stop")
	}
	stop(server, signals)
	return nil
}

// stop lets calls end, for a while or until the next signal.
func stop(server *grpc.Server, signals <-chan os.Signal) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.GracefulStop()
	}()
	select {
	case <-ended:
	case <-signals:
	case <-time.After(stopTimeout):
	}
	server.Stop()
	<-ended
}

func snapshotterConfig(cfg config.Config, log *logrus.Entry) snapshotter.Config {
	options := []string{"io=" + cfg.Mount.IO.String(), "sharing=" + cfg.Mount.Sharing.String()}
	for _, o := range cfg.Mount.Options {
		options = append(options, o.String())
	}
	return snapshotter.Config{
		Root: cfg.Root.String(),
		Mounter: &snapshotter.MountServer{
			Socket:       cfg.Server.Socket.String(),
			Autostart:    cfg.Server.Autostart,
			Command:      cfg.Server.ServeCommand(),
			StartTimeout: cfg.Server.StartTimeout.Duration,
			Log:          log,
		},
		MountOptions:  options,
		KeepMetacopy:  cfg.KeepMetacopy(),
		UpperdirLabel: cfg.UpperdirLabel,
		UsageTTL:      cfg.UsageTTL.Duration,
		ViewsFUSE:     cfg.Mount.Views == config.ViewsFUSE,
		Log:           log,
	}
}
