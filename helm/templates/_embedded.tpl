{{/* Headless service of an embedded server. */}}
{{- define "alignez.embeddedService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "alignez.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "alignez.selectorLabels" . | nindent 4 }}
  ports:
    {{- range .ports }}
    - {name: {{ .name }}, port: {{ .port }}, targetPort: {{ .name }}, protocol: TCP}
    {{- end }}
{{- end }}

{{- define "alignez.embeddedStatefulSetHead" -}}
replicas: 1
serviceName: {{ include "alignez.fullname" .root }}-{{ .component }}
podManagementPolicy: OrderedReady
selector:
  matchLabels:
    {{- include "alignez.selectorLabels" . | nindent 4 }}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: Retain
  whenScaled: Retain
volumeClaimTemplates:
  - metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .values.storageClassName }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .values.storage }}
{{- end }}
