{{/* Deployment of an API: control and inference differ in image, resources, volumes and what a start is. */}}
{{- define "alignez.apiDeployment" -}}
{{- $values := index .root.Values .component -}}
{{- $model := eq .component "inference" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "alignez.metadata" . | nindent 2 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ $values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  {{- if $model }}
  # A pod that loads for longer than the default ten minutes has not failed.
  progressDeadlineSeconds: {{ add $values.startupSeconds 300 }}
  {{- end }}
  strategy:
    {{- toYaml $values.strategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "alignez.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "alignez.podLabels" . | nindent 8 }}
      annotations:
        {{- include "alignez.checksum" . | nindent 8 }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "alignez.podBasics" (dict "root" .root) | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "alignez.apiGrace" $values }}
      {{- include "alignez.placement" (dict "root" .root "component" .component "values" $values) | trim | nindent 6 }}
      containers:
        - name: api
          image: {{ include "alignez.image" (dict "root" .root "image" .component) }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          args: [alignez, api]
          securityContext:
            {{- include "alignez.containerSecurity" . | nindent 12 }}
          ports:
            - {name: http, containerPort: 8000}
            - {name: metrics, containerPort: 9100}
          envFrom:
            - configMapRef:
                name: {{ include "alignez.fullname" .root }}-{{ .component }}
          env:
            {{- include "alignez.secretEnv" . | trim | nindent 12 }}
            {{- if $model }}
            {{- include "alignez.modelEnv" .root | nindent 12 }}
            {{- else }}
            - name: HOME
              value: /tmp
            {{- end }}
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          startupProbe:
            {{- if $model }}
            # /health answers while the model loads; /ready answers when it is there.
            httpGet: {path: /ready, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: {{ div (add $values.startupSeconds 9) 10 }}
            {{- else }}
            httpGet: {path: /health, port: http}
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 60
            {{- end }}
          readinessProbe:
            # Database, migrations, broker, model, as far as the role needs them.
            httpGet: {path: /ready, port: http}
            periodSeconds: 5
            # Above ALIGNEZ_API_READY_TIMEOUT_S, which bounds each of the checks.
            timeoutSeconds: 5
            failureThreshold: 2
          livenessProbe:
            # The event loop answers. Database and broker are not asked: a restart would not bring them back.
            httpGet: {path: /health, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          resources:
            {{- if $model }}
            {{- include "alignez.resources" $values | nindent 12 }}
            {{- else }}
            {{- toYaml $values.resources | nindent 12 }}
            {{- end }}
          volumeMounts:
            {{- if $model }}
            {{- include "alignez.modelMounts" . | nindent 12 }}
            {{- else }}
            - {name: tmp, mountPath: /tmp}
            {{- end }}
            {{- with include "alignez.secretMounts" . | trim }}
            {{- . | nindent 12 }}
            {{- end }}
      volumes:
        {{- if $model }}
        {{- include "alignez.modelVolumes" (dict "root" .root "values" $values) | nindent 8 }}
        {{- else }}
        - name: tmp
          emptyDir:
            sizeLimit: 256Mi
        {{- end }}
        {{- with include "alignez.secretVolumes" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
{{- end }}

{{- define "alignez.apiService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "alignez.metadata" . | nindent 2 }}
spec:
  type: ClusterIP
  selector:
    {{- include "alignez.selectorLabels" . | nindent 4 }}
  ports:
    - {name: http, port: 80, targetPort: http, protocol: TCP, appProtocol: http}
    - {name: metrics, port: 9100, targetPort: metrics, protocol: TCP}
{{- end }}

{{/* For Prometheus alone, which goes to each pod: also to those that still load their model. */}}
{{- define "alignez.metricsService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "alignez.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "alignez.selectorLabels" . | nindent 4 }}
  ports:
    - {name: metrics, port: 9100, targetPort: metrics, protocol: TCP}
{{- end }}

{{- define "alignez.pdb" -}}
{{- if .root.Values.podDisruptionBudgets.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "alignez.metadata" . | nindent 2 }}
spec:
  # As a number of absent pods: one of a single replica may still be drained.
  maxUnavailable: {{ .root.Values.podDisruptionBudgets.maxUnavailable }}
  # A pod that never became ready must not hold a node back.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "alignez.selectorLabels" . | nindent 6 }}
{{- end -}}
{{- end }}
