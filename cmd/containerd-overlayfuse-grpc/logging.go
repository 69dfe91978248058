package main

import (
	"io"

	"github.com/sirupsen/logrus"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
)

// setUpLog configures logrus's standard logger, which containerd's packages write to as well.
func setUpLog(cfg config.Log, to io.Writer) *logrus.Entry {
	logger := logrus.StandardLogger()
	logger.SetOutput(to)
	logger.SetLevel(cfg.Level.Level)
	// Compare: containerd's log package, RFC3339NanoFixed: fixed width, so that lines sort.
	const timestamp = "2006-01-02T15:04:05.000000000Z07:00"
	if cfg.Format == config.FormatJSON {
		logger.SetFormatter(&logrus.JSONFormatter{TimestampFormat: timestamp})
	} else {
		logger.SetFormatter(&logrus.TextFormatter{TimestampFormat: timestamp, FullTimestamp: true})
	}
	return logrus.NewEntry(logger)
}
